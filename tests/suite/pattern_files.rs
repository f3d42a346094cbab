//! Every file in `patterns/` reads, prints back, and resolves at any length.

use std::path::PathBuf;

use hopweave::pattern;
use hopweave::spec::{self, Source};

fn pattern_files() -> Vec<(PathBuf, String)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("patterns");
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .expect("the folder of patterns")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|e| e == "yaml"))
        .collect();
    files.sort();
    assert!(files.len() >= 13, "{files:?}");
    files.into_iter().map(|path| (path.clone(), std::fs::read_to_string(path).expect("a text"))).collect()
}

#[test]
fn names_are_those_of_the_files_and_specs_print_back() {
    for (path, text) in pattern_files() {
        let file = path.to_string_lossy();
        let spec = spec::parse(&text, &file).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(Some(spec.name.as_str()), path.file_stem().and_then(|s| s.to_str()));
        assert!(text.starts_with('#'), "{file} says what it is");
        assert!(spec.description.is_some());
        let printed = spec.print();
        let again = spec::parse(&printed, "<printed>").unwrap_or_else(|error| panic!("{printed}\n{error}"));
        assert!(spec.same(&again), "{file} printed as\n{printed}");
        assert_eq!(again.print(), printed);
    }
}

#[test]
fn every_file_resolves_at_every_length_and_lets_every_query_see_something() {
    for (path, text) in pattern_files() {
        let spec = spec::parse(&text, &path.to_string_lossy()).unwrap_or_else(|error| panic!("{error}"));
        for n in [0, 1, 2, 63, 64, 65, 127, 251, 1000] {
            // A grid does not have every number of tokens.
            let n = match spec.name.as_str() {
                "natten-2d" | "axial" | "tensorized" => {
                    (n..).find(|&n| pattern::resolve(&spec, n, n).is_ok()).expect("a length")
                }
                _ => n,
            };
            let pattern =
                pattern::resolve(&spec, n, n).unwrap_or_else(|error| panic!("{} at {n}: {error}", path.display()));
            for q in 0..n {
                for head in 0..spec.heads.min(8) {
                    let sees = (0..n).any(|k| pattern.allows(head, q, k));
                    assert!(sees, "{} at {n}, head {head}, query {q}", path.display());
                }
            }
            let text = pattern.print();
            let again = pattern::parse_text(&text).unwrap_or_else(|error| panic!("{text}\n{error}"));
            assert_eq!(again.print(), text);
        }
    }
}

#[test]
fn diffusers_have_the_hops_of_the_paper() {
    for (path, text) in pattern_files().into_iter().filter(|(path, _)| path.to_string_lossy().contains("diffuser")) {
        let spec = spec::parse(&text, &path.to_string_lossy()).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(spec.diffusion, spec::Diffusion::restart(5, 0.1), "{}", path.display());
    }
}

#[test]
fn damaged_files_are_refused_or_read_but_never_crash() {
    // A plain linear congruential generator: the damage is the same on every run.
    let mut state = 1_u64;
    let mut random = move |bound: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % bound
    };
    let pieces =
        ["-", "0", ":", " ", "\n", "[", "]", "{", "}", "\"", "/", "n", "%", "**", "9999999999", "\t", "&a", "*a", ","];
    let mut refused = 0;
    for (path, text) in pattern_files() {
        // Damage in comments would change nothing.
        let spec: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with('#')).collect();
        let chars: Vec<char> = spec.join("\n").chars().collect();
        for _ in 0..300 {
            let mut damaged = chars.clone();
            for _ in 0..=random(3) {
                let at = random(damaged.len());
                let until = (at + random(4)).min(damaged.len());
                damaged.splice(at..until, pieces[random(pieces.len())].chars());
            }
            let text: String = damaged.into_iter().collect();
            let source = Source::new(text.as_str(), path.to_string_lossy());
            let result = pattern::read(source, &[]).and_then(|spec| pattern::resolve(&spec, 65, 65));
            if let Err(error) = result {
                refused += 1;
                assert!(!error.to_string().contains("internal error"), "{text}\n{error}");
            }
        }
    }
    assert!(refused > 1000, "{refused}");
}
