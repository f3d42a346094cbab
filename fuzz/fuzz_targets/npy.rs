//! Any bytes as a `.npy` file: as a tensor of each type, as integers, and as a layout or edges beside a spec.
#![no_main]

use std::cell::RefCell;
use std::path::PathBuf;

use hopweave::npy;
use hopweave::spec::Source;
use hopweave::{Dtype, Error, half, pattern};
use libfuzzer_sys::fuzz_target;
use ndarray::{Array, Ix1, Ix2, Ix4};
use tempfile::TempDir;

thread_local! {
    static FOLDER: RefCell<Option<TempDir>> = const { RefCell::new(None) };
}

/// The bytes as a file.
fn file(data: &[u8]) -> PathBuf {
    FOLDER.with_borrow_mut(|folder| {
        let folder = folder.get_or_insert_with(|| tempfile::tempdir().expect("a folder"));
        let path = folder.path().join("data.npy");
        std::fs::write(&path, data).expect("a file");
        path
    })
}

/// Written again, a tensor that was read gives the same bytes again.
fn round_trip<T: hopweave::Element + PartialEq>(path: &std::path::Path, tensor: &Array<T, Ix4>) {
    let copy = path.with_file_name("copy.npy");
    npy::write_all(&[(&copy, tensor)]).unwrap_or_else(|error| panic!("{error}"));
    let again: Array<T, Ix4> = npy::read(&copy).unwrap_or_else(|error| panic!("{error}"));
    let bits = |tensor: &Array<T, Ix4>| {
        let mut bytes = Vec::new();
        tensor.iter().for_each(|&x| x.to_le(&mut bytes));
        bytes
    };
    assert_eq!(tensor.shape(), again.shape());
    assert_eq!(bits(tensor), bits(&again));
}

fuzz_target!(|data: &[u8]| {
    let path = file(data);
    for dtype in Dtype::ALL {
        let checked = npy::check(&path, &["batch", "heads", "q_len", "head_dim"], dtype);
        match (dtype, checked.is_ok()) {
            (_, false) => {}
            (Dtype::F32, true) => round_trip::<f32>(&path, &npy::read(&path).unwrap_or_else(|error| panic!("{error}"))),
            (Dtype::F16, true) => {
                round_trip::<half::f16>(&path, &npy::read(&path).unwrap_or_else(|error| panic!("{error}")));
            }
            (Dtype::Bf16, true) => {
                round_trip::<half::bf16>(&path, &npy::read(&path).unwrap_or_else(|error| panic!("{error}")));
            }
        }
        // Unchecked as well, since a file can change between the two.
        let _: Result<Array<f32, Ix4>, Error> = npy::read(&path);
    }
    let _: Result<Array<i64, Ix1>, Error> = npy::read_integers(&path, &["batch"]);
    let _: Result<Array<i64, Ix2>, Error> = npy::read_integers(&path, &["batch", "kv_len"]);
    for node in ["blocks: {block: 16, file: data.npy}", "edges: {file: data.npy}"] {
        let text = format!("name: x\nheads: 2\nhead_dim: 4\npattern: {{{node}}}\n");
        let source = Source::new(text, path.with_file_name("spec.yaml").display().to_string());
        let spec = pattern::read(source, &[]);
        let resolved = spec.and_then(|spec| pattern::resolve(&spec, 60, 60));
        if let Err(error) = resolved {
            assert!(matches!(error, Error::Spec(_)), "{error}");
        }
    }
});
