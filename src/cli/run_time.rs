//! Key lengths, segment ids and picked neighbors of a run, from `.npy` files of integers.

use std::path::Path;

use ndarray::{Array1, Array2, Array4, Ix1, Ix2, Ix4};

use super::inputs::Assignment;
use super::tensors::Extents;
use crate::error::{Error, Result};
use crate::npy;
use crate::operator::{Arguments, PickedInput};
use crate::pattern::{self, Awaited, Awaits};
use crate::spec::PatternSpec;

/// What the files hold.
#[derive(Debug)]
pub struct RunTimeFiles {
    key_lengths: Option<Array1<i64>>,
    segments: Vec<(String, Array2<i32>)>,
    layouts: Vec<(String, Array4<u8>)>,
    lists: Vec<(String, Array4<i32>)>,
    /// All other inputs.
    pub others: Vec<Assignment>,
}

impl RunTimeFiles {
    /// Reads key lengths, and those of the inputs that the spec's pattern names.
    ///
    /// # Errors
    /// [`Error::Input`] for files that hold no integers of the right axes, [`Error::Value`] where ids are missing.
    pub fn read(
        spec: &PatternSpec,
        inputs: &[Assignment],
        key_lengths: Option<&Path>,
        extents: Extents,
    ) -> Result<Self> {
        let awaited = pattern::resolve(spec, extents.q_len, extents.kv_len)?.awaits();
        let key_lengths = key_lengths.map(|path| npy::read_integers::<Ix1>(path, &["batch"])).transpose()?;
        let (mut segments, mut layouts, mut lists) = (Vec::new(), Vec::new(), Vec::new());
        for Awaited { name, what } in awaited {
            if matches!(what, Awaits::Top(_)) {
                continue;
            }
            let Some((_, path)) = inputs.iter().find(|(given, _)| *given == name) else {
                let wanted = if what == Awaits::Segments { "segment ids" } else { "picked neighbors" };
                let message = format!("{wanted} are not given; expected `--input {name}=FILE.npy`");
                return Err(Error::Value { tensor: name, message });
            };
            if what != Awaits::Segments {
                let axes = ["batch", "heads", "rows", "entries"];
                let picked = npy::read_integers::<Ix4>(path, &axes)?;
                if npy::holds_bytes(path)? {
                    layouts.push((name, picked.mapv(|picked| u8::from(picked != 0))));
                    continue;
                }
                if let Some(entry) = picked.iter().find(|&&entry| i32::try_from(entry).is_err()) {
                    let message = format!("holds the number {entry}; expected 32-bit integers, -1 where a list ends");
                    return Err(Error::Input { path: path.clone(), message });
                }
                lists.push((name, picked.mapv(|entry| entry as i32)));
                continue;
            }
            let ids = npy::read_integers::<Ix2>(path, &["batch", "kv_len"])?;
            if let Some(id) = ids.iter().find(|&&id| i32::try_from(id).is_err()) {
                let message = format!("holds the segment id {id}; expected 32-bit integers from 0 on");
                return Err(Error::Input { path: path.clone(), message });
            }
            segments.push((name, ids.mapv(|id| id as i32)));
        }
        let is_read = |name: &str| {
            let names = segments.iter().map(|(name, _): &(String, Array2<i32>)| name);
            let picked = layouts.iter().map(|(name, _): &(String, Array4<u8>)| name);
            let listed = lists.iter().map(|(name, _): &(String, Array4<i32>)| name);
            names.chain(picked).chain(listed).any(|known| known == name)
        };
        let others = inputs.iter().filter(|(name, _)| !is_read(name)).cloned().collect();
        Ok(Self { key_lengths, others, segments, layouts, lists })
    }

    /// As an operator takes them, without the inputs of score mods.
    pub fn arguments(&self) -> Arguments<'_> {
        Arguments {
            key_lengths: self.key_lengths.as_ref().and_then(|lengths| lengths.as_slice()),
            segments: self.segments.iter().map(|(name, ids)| (name.clone(), ids.view())).collect(),
            picked: {
                let layouts = self.layouts.iter();
                let layouts = layouts.map(|(name, layout)| (name.clone(), PickedInput::Layout(layout.view())));
                let lists = self.lists.iter().map(|(name, lists)| (name.clone(), PickedInput::Lists(lists.view())));
                layouts.chain(lists).collect()
            },
            ..Arguments::default()
        }
    }
}
