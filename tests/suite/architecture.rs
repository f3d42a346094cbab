//! The shape of the crate, as ARCHITECTURE.md draws it, checked on the text of the sources.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use hopweave::pattern::{COMBINATORS, NODES};

/// Every module, left to right, with what it may import; only names further left may stand there.
const MAP: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("limits", &["error"]),
    ("dtype", &[]),
    ("dropout", &["error"]),
    ("target", &["error"]),
    ("npy", &["error", "dtype"]),
    ("cache", &["error"]),
    ("tiles", &["error", "target", "dtype", "dropout"]),
    ("machine", &["error", "target", "cache", "tiles"]),
    ("spec", &["error", "limits", "dtype"]),
    ("pattern", &["error", "limits", "spec"]),
    ("import", &["error", "spec"]),
    // The oracle shares no code with what it judges.
    ("interpreter", &["error", "dropout", "spec", "pattern"]),
    ("mask", &["error", "limits", "spec", "pattern"]),
    ("program", &["error", "dtype", "spec", "pattern", "mask"]),
    ("passes", &["error", "dtype", "spec", "pattern", "mask", "program"]),
    ("cost", &["target", "dtype", "machine", "spec", "pattern", "mask", "program", "passes", "tiles"]),
    ("plan", &["error", "target", "dtype", "machine", "spec", "mask", "program", "passes", "cost", "tiles"]),
    // The interpreter judges its passes in tests.
    (
        "codegen",
        &["error", "limits", "target", "dtype", "dropout", "spec", "interpreter", "mask", "program", "plan", "tiles"],
    ),
    ("jit", &["error", "limits", "target", "tiles", "plan", "codegen"]),
    (
        "runtime",
        &["error", "target", "dtype", "machine", "dropout", "spec", "mask", "program", "plan", "codegen", "jit"],
    ),
    ("tuned", &["error", "target", "dtype", "cache", "machine", "spec", "passes", "plan"]),
    (
        "compiler",
        &[
            "error", "limits", "target", "cache", "machine", "spec", "pattern", "mask", "program", "passes", "cost",
            "plan", "codegen", "jit", "runtime", "tuned",
        ],
    ),
    ("measure", &["error"]),
    ("tune", &["error", "dtype", "spec", "mask", "passes", "plan", "compiler", "measure"]),
    ("select", &["error", "dtype", "pattern"]),
    ("operator", &["error", "dtype", "dropout", "spec", "pattern", "jit", "runtime", "compiler", "select"]),
    ("analysis", &["error", "spec", "pattern", "mask"]),
    ("exchange", &["error", "limits", "spec", "pattern", "mask"]),
    ("picture", &["error", "spec", "pattern", "mask", "analysis"]),
    // The interpreter judges baselines too.
    ("baselines", &["error", "spec", "pattern", "interpreter", "analysis"]),
    (
        "cli",
        &[
            "runtime",
            "error",
            "limits",
            "target",
            "dtype",
            "npy",
            "cache",
            "machine",
            "spec",
            "pattern",
            "import",
            "interpreter",
            "mask",
            "program",
            "passes",
            "cost",
            "plan",
            "tuned",
            "compiler",
            "measure",
            "tune",
            "operator",
            "analysis",
            "exchange",
            "picture",
            "baselines",
        ],
    ),
];

/// Longest source file, in lines. Past it, ask whether it is two things.
const MOST_LINES: usize = 800;

#[test]
fn the_map_has_no_cycles_and_every_module() {
    let mut left = BTreeSet::new();
    for (module, imports) in MAP {
        for import in *imports {
            assert!(left.contains(import), "{module} may import {import}, which does not stand to its left");
        }
        left.insert(*module);
    }
    let modules: BTreeSet<String> = sources().into_keys().map(|path| module(&path)).collect();
    let modules: BTreeSet<&str> = modules.iter().map(String::as_str).collect();
    assert_eq!(modules, left, "modules in src and modules in the map");
    let text = read("ARCHITECTURE.md");
    for module in left {
        assert!(text.contains(&format!("| `{module}` |")), "ARCHITECTURE.md has no line for `{module}`");
    }
}

#[test]
fn imports_go_left() {
    let map: BTreeMap<&str, &[&str]> = MAP.iter().copied().collect();
    let mut checked = 0;
    for (path, text) in sources() {
        let module = module(&path);
        for import in imports(&text) {
            checked += 1;
            let allowed = map[module.as_str()].contains(&import.as_str());
            assert!(allowed || import == module, "{} imports crate::{import}", path.display());
        }
    }
    assert!(checked > 100, "{checked} imports found");
}

#[test]
fn cranelift_stays_in_codegen_and_jit() {
    for (path, text) in sources() {
        if !["codegen", "jit"].contains(&module(&path).as_str()) {
            assert!(!text.contains("cranelift_"), "{} names Cranelift", path.display());
        }
    }
}

#[test]
fn unsafe_code_stays_in_tiles_jit_and_one_call() {
    for (path, text) in sources() {
        let count = text.matches("allow(unsafe_code)").count();
        let most = match module(&path).as_str() {
            "tiles" | "jit" => usize::MAX,
            "runtime" => 1,
            // Tests of emitted tiles call them.
            "codegen" if path.ends_with("tests.rs") => usize::MAX,
            _ => 0,
        };
        assert!(count <= most, "{} allows unsafe code {count} times", path.display());
    }
}

#[test]
fn unsafe_blocks_say_why() {
    for (path, text) in sources() {
        let text = fs::read_to_string(root().join(&path)).unwrap_or(text);
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        for (at, line) in lines.iter().enumerate() {
            let block = line.contains("unsafe {") || line.starts_with("unsafe impl");
            if !block || line.starts_with("//") {
                continue;
            }
            // The reason stands above the statement, which may begin some lines before the block.
            let reason = lines[at.saturating_sub(8)..=at].iter().any(|line| line.contains("SAFETY"));
            assert!(reason, "{}:{}: no SAFETY reason", path.display(), at + 1);
        }
    }
}

#[test]
fn files_stay_short() {
    for folder in ["src", "tests", "benches", "examples"] {
        for path in rust_files(&root().join(folder)) {
            let lines = fs::read_to_string(&path).expect("a text").lines().count();
            assert!(lines <= MOST_LINES, "{} has {lines} lines", path.display());
        }
    }
}

#[test]
fn the_readme_names_every_node_and_every_pattern_file() {
    let readme = read("README.md");
    let names = NODES.iter().map(|node| node.name).chain(COMBINATORS.iter().map(|node| node.name));
    for name in names {
        let row = [format!("| `{name}`"), format!("| `{name}:")];
        assert!(row.iter().any(|row| readme.contains(row)), "README.md has no row for `{name}`");
    }
    for entry in fs::read_dir(root().join("patterns")).expect("the folder of patterns") {
        let name = entry.expect("an entry").file_name().into_string().expect("a name in UTF-8");
        if name.ends_with(".yaml") {
            assert!(readme.contains(&format!("(patterns/{name})")), "README.md does not link patterns/{name}");
        }
    }
}

#[test]
fn links_between_documents_lead_somewhere() {
    for document in ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"] {
        let text = read(document);
        for rest in text.split("](").skip(1) {
            let target = rest.split([')', '#']).next().unwrap_or_default();
            if !target.is_empty() && !target.contains("://") {
                assert!(root().join(target).exists(), "{document} links to {target}");
            }
        }
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(file: &str) -> String {
    fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// Every source of the library by its path from the root, comments taken out.
pub fn sources() -> BTreeMap<PathBuf, String> {
    let mut sources = BTreeMap::new();
    for path in rust_files(&root().join("src")) {
        let text = fs::read_to_string(&path).expect("a text");
        let code: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        let path = path.strip_prefix(root()).expect("a path below the root").to_path_buf();
        if !path.ends_with("lib.rs") && !path.ends_with("main.rs") {
            sources.insert(path, code.join("\n"));
        }
    }
    sources
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

/// The module of the crate that a file under `src` belongs to.
fn module(path: &Path) -> String {
    let below = path.strip_prefix("src").expect("a path below src");
    let first = below.components().next().expect("a name");
    first.as_os_str().to_string_lossy().trim_end_matches(".rs").to_string()
}

/// First names of all paths that begin with `crate::`, those in braces too. `crate::Error` and `crate::Result`
/// are those of `error`.
fn imports(code: &str) -> BTreeSet<String> {
    let mut imports = BTreeSet::new();
    for path in code.split("crate::").skip(1) {
        let mut depth = 0;
        let mut names = Vec::new();
        let mut name = String::new();
        // At depth 1 of `{a, b::c, d::{e, f}}` names end at a comma; a path without braces ends at once.
        for letter in path.chars() {
            match letter {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 1 => names.push(std::mem::take(&mut name)),
                _ if depth <= 1 => name.push(letter),
                _ => {}
            }
            if depth == 0 && !(letter.is_alphanumeric() || letter == '_') {
                break;
            }
        }
        names.push(name);
        for name in names {
            let first: String = name.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            match first.chars().next() {
                None => {}
                Some(letter) if letter.is_uppercase() => {
                    imports.insert("error".to_string());
                }
                Some(_) => {
                    imports.insert(first);
                }
            }
        }
    }
    imports
}

#[test]
fn imports_are_found_in_every_form() {
    let code = "use crate::{a, b::c, d::{e, f}};\nuse crate::g::H;\nlet x = crate::i::j(crate::k);\ncrate::Error";
    let found: Vec<String> = imports(code).into_iter().collect();
    assert_eq!(found, ["a", "b", "d", "error", "g", "i", "k"]);
}
