//! Integer expressions over lengths.
