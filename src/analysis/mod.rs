//! What a pattern costs and how far it reaches.

pub mod edge_list;

pub use edge_list::{EdgeList, KeyFinder};
