//! Key lengths and segment ids of a run, from `.npy` files of integers.

use std::path::Path;

use ndarray::{Array1, Array2, Ix1, Ix2};

use super::inputs::Assignment;
use super::tensors::Extents;
use crate::error::{Error, Result};
use crate::npy;
use crate::operator::Arguments;
use crate::pattern;
use crate::spec::PatternSpec;

/// What the files hold.
#[derive(Debug)]
pub struct RunTimeFiles {
    key_lengths: Option<Array1<i64>>,
    segments: Vec<(String, Array2<i32>)>,
    /// Inputs that are no segment ids.
    pub others: Vec<Assignment>,
}

impl RunTimeFiles {
    /// Reads key lengths, and those of the inputs that the spec's pattern names as segment ids.
    ///
    /// # Errors
    /// [`Error::Input`] for files that hold no integers of the right axes, [`Error::Value`] where ids are missing.
    pub fn read(
        spec: &PatternSpec,
        inputs: &[Assignment],
        key_lengths: Option<&Path>,
        extents: Extents,
    ) -> Result<Self> {
        let names = pattern::resolve(spec, extents.q_len, extents.kv_len)?.run_time_segments();
        let key_lengths = key_lengths.map(|path| npy::read_integers::<Ix1>(path, &["batch"])).transpose()?;
        let mut segments = Vec::new();
        for name in names {
            let Some((_, path)) = inputs.iter().find(|(given, _)| *given == name) else {
                let message = format!("segment ids are not given; expected `--input {name}=FILE.npy`");
                return Err(Error::Value { tensor: name, message });
            };
            let ids = npy::read_integers::<Ix2>(path, &["batch", "kv_len"])?;
            if let Some(id) = ids.iter().find(|&&id| i32::try_from(id).is_err()) {
                let message = format!("holds the segment id {id}; expected 32-bit integers from 0 on");
                return Err(Error::Input { path: path.clone(), message });
            }
            segments.push((name, ids.mapv(|id| id as i32)));
        }
        let others = inputs.iter().filter(|(name, _)| segments.iter().all(|(known, _)| known != name)).cloned();
        Ok(Self { key_lengths, others: others.collect(), segments })
    }

    /// As an operator takes them, without the inputs of score mods.
    pub fn arguments(&self) -> Arguments<'_> {
        Arguments {
            key_lengths: self.key_lengths.as_ref().and_then(|lengths| lengths.as_slice()),
            segments: self.segments.iter().map(|(name, ids)| (name.clone(), ids.view())).collect(),
            ..Arguments::default()
        }
    }
}
