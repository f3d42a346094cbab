//! What the tiles are compiled with, against what the CPU is asked for.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::target::Isa;

/// Every list in `target_feature(enable = "...")` and every feature list of a `tile_set!`, by file.
fn enabled(folder: &Path, found: &mut Vec<(String, BTreeSet<String>)>) {
    for entry in fs::read_dir(folder).expect("a folder of sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            enabled(&path, found);
            continue;
        }
        let text = fs::read_to_string(&path).expect("a text");
        let code: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        let code = code.join("\n");
        let lists = code.split("enable = \"").skip(1).chain(code.split("tile_set!(").skip(1).filter_map(|call| {
            call.split(");").next()?.split_once('"').map(|(_, list)| list)
        }));
        for list in lists {
            let features = list.split('"').next().expect("a list").split(',').map(str::to_owned).collect();
            found.push((path.file_stem().expect("a name").to_string_lossy().into_owned(), features));
        }
    }
}

#[test]
fn every_feature_is_asked_for() {
    let mut found = Vec::new();
    enabled(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/tiles"), &mut found);
    for (file, features) in &found {
        let covered: Vec<&str> = match file.as_str() {
            "avx2" => Isa::Avx2.features().to_vec(),
            "avx512" => Isa::Avx512.features().to_vec(),
            // `dots::available` asks for these.
            "dots" => [Isa::Avx512.features(), &["avx512bf16"]].concat(),
            // `fma_peak` asks for it where it takes the function.
            "peak" => vec!["fma"],
            _ => panic!("{file} enables {features:?}: features stand in the files of families"),
        };
        for feature in features {
            assert!(covered.contains(&feature.as_str()), "{file} enables {feature}, which nothing asks for");
        }
    }
    // No more is asked for than is enabled.
    for (file, isa) in [("avx2", Isa::Avx2), ("avx512", Isa::Avx512)] {
        let all: BTreeSet<&str> =
            found.iter().filter(|(of, _)| of == file).flat_map(|(_, list)| list.iter().map(String::as_str)).collect();
        assert_eq!(all, isa.features().iter().copied().collect(), "{file}");
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn tables_name_the_features_of_their_family() {
    for tiles in [&super::avx2::TILES, &super::avx512::TILES] {
        assert_eq!(tiles.features, tiles.isa.features().join(","));
    }
}
