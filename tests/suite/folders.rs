//! No circles of imports inside a folder of `src`: what a file needs of its siblings, none of them needs of it.
//!
//! Every folder is a graph. Its nodes are its modules (`a.rs` and `a/` are one), its edges the paths that begin with `super::`,
//! `self::` or `crate::` and end in a sibling, in `use` or in the middle of code. A name that the parent hands on
//! (`pub use build::build`) belongs to the module that defines it. A parent may import its children, and children what the
//! parent defines itself. Modules of tests are left out.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::architecture::sources;

/// Names from the crate's root on: of a module, or of something in one.
type Names = Vec<String>;

/// Who imports whom, with a path that says so.
type Graph = BTreeMap<String, BTreeMap<String, String>>;

#[test]
fn no_circles_inside_folders() {
    let folders = Crate::new(sources().iter().map(|(path, text)| (path.as_path(), text.as_str()))).folders();
    let edges: usize = folders.values().flat_map(BTreeMap::values).map(BTreeMap::len).sum();
    assert!(folders.len() > 20 && edges > 200, "{} folders, {edges} imports among siblings", folders.len());
    let mut found = String::new();
    for (folder, graph) in &folders {
        for circle in circles(graph) {
            found += &format!("src/{folder}:\n{}\n", told(graph, &circle));
        }
    }
    assert!(found.is_empty(), "circles of imports:\n{found}");
}

/// Every set of nodes that reach each other, in order of their names.
fn circles(graph: &Graph) -> Vec<Vec<&str>> {
    let reach = |from: &str| {
        let mut found = BTreeSet::new();
        let mut next = vec![from];
        while let Some(node) = next.pop() {
            for to in graph.get(node).into_iter().flat_map(BTreeMap::keys) {
                if found.insert(to.as_str()) {
                    next.push(to);
                }
            }
        }
        found
    };
    let reached: BTreeMap<&str, BTreeSet<&str>> = graph.keys().map(|node| (node.as_str(), reach(node))).collect();
    let mut found = BTreeSet::new();
    for (&node, to) in &reached {
        let circle: Vec<&str> =
            to.iter().filter(|to| reached.get(**to).is_some_and(|back| back.contains(node))).copied().collect();
        if !circle.is_empty() {
            found.insert(circle);
        }
    }
    found.into_iter().collect()
}

/// The imports within a circle, one a line.
fn told(graph: &Graph, circle: &[&str]) -> String {
    let mut lines = Vec::new();
    for from in circle {
        for (to, path) in &graph[*from] {
            if circle.contains(&to.as_str()) {
                lines.push(format!("  {from} imports {to}: {path}"));
            }
        }
    }
    lines.join("\n")
}

/// The modules of the library, without those of tests.
struct Crate {
    /// The code of each; modules inside a file are modules too.
    code: BTreeMap<Names, String>,
    /// Names that a module imports, and so hands on to its children and, if public, to others.
    imported: BTreeMap<Names, BTreeMap<String, Names>>,
}

impl Crate {
    /// From paths such as `src/mask/build.rs`, and texts.
    fn new<'a>(files: impl Iterator<Item = (&'a Path, &'a str)>) -> Self {
        let mut code = BTreeMap::new();
        for (path, text) in files {
            let mut names: Names =
                path.with_extension("").iter().skip(1).map(|name| name.to_string_lossy().into_owned()).collect();
            names.pop_if(|last| last == "mod");
            if !names.iter().any(|name| name == "tests") {
                modules(text, names, &mut code);
            }
        }
        let mut found = Self { code, imported: BTreeMap::new() };
        for (module, code) in &found.code {
            let mut imported = BTreeMap::new();
            for statement in code.split(';').filter_map(|part| part.rsplit_once("use ").map(|(_, tree)| tree)) {
                for (path, name) in leaves(statement) {
                    let Some(target) = found.absolute(module, &path) else { continue };
                    assert_ne!(name, "*", "{}: what a glob imports is not seen here", module.join("::"));
                    imported.insert(name, target);
                }
            }
            found.imported.insert(module.clone(), imported);
        }
        found
    }

    /// The graph of every folder by its path below `src`, such as `spec/score`; the root has its own map.
    fn folders(&self) -> BTreeMap<String, Graph> {
        let mut folders: BTreeMap<String, Graph> = BTreeMap::new();
        for module in self.code.keys().filter(|module| module.len() > 1) {
            let (node, folder) = module.split_last().expect("a name");
            folders.entry(folder.join("/")).or_default().entry(node.clone()).or_default();
        }
        for (module, code) in &self.code {
            for path in paths(code) {
                let Some(target) = self.absolute(module, &path) else { continue };
                let target = self.home(&target, 0);
                let shared = module.iter().zip(&target).take_while(|(a, b)| a == b).count();
                // At the root, or parent and child.
                if shared == 0 || shared == module.len() || shared == target.len() {
                    continue;
                }
                let graph = folders.get_mut(&module[..shared].join("/")).expect("a folder");
                let edges = graph.entry(module[shared].clone()).or_default();
                edges.entry(target[shared].clone()).or_insert_with(|| path.join("::"));
            }
        }
        folders
    }

    /// A path as it stands in a module, from the root on; `None` for other crates' and what is no path of modules.
    fn absolute(&self, module: &[String], path: &[String]) -> Option<Names> {
        let up = path.iter().take_while(|name| *name == "super").count();
        let first = path.first()?.as_str();
        let base = match first {
            "crate" => &[],
            "self" => module,
            "super" => &module[..module.len().checked_sub(up)?],
            _ if self.code.contains_key(&[module, &path[..1]].concat()) => module,
            _ => return None,
        };
        let skipped = if first == "super" { up } else { usize::from(["crate", "self"].contains(&first)) };
        Some([base, &path[skipped..]].concat())
    }

    /// The module that a path leads to, through imports on its way.
    fn home(&self, path: &[String], depth: usize) -> Names {
        assert!(depth < 16, "{}: imports lead in a circle", path.join("::"));
        let len = (0..=path.len()).rev().find(|&len| self.code.contains_key(&path[..len])).unwrap_or(0);
        let (module, rest) = path.split_at(len);
        let handed_on = rest.first().and_then(|name| self.imported.get(module)?.get(name));
        match handed_on {
            Some(target) => self.home(&[target, &rest[1..]].concat(), depth + 1),
            None => module.to_vec(),
        }
    }
}

/// Adds the module of a file and those inside it, without those of tests.
fn modules(text: &str, names: Names, code: &mut BTreeMap<Names, String>) {
    let mut kept = Vec::new();
    let mut lines = text.lines();
    let mut before = "";
    while let Some(line) = lines.next() {
        match line.trim_start().strip_suffix(" {").and_then(|line| line.split_once("mod ")) {
            Some((rights, name)) if rights.is_empty() || rights.starts_with("pub") => {
                // rustfmt closes a module where it opens it.
                let end = format!("{}}}", &line[..line.len() - line.trim_start().len()]);
                let inner = lines.by_ref().take_while(|line| *line != end);
                // All of the file around it is the same node.
                let inner: Vec<&str> = inner.filter(|line| line.trim() != "use super::*;").collect();
                if before.trim() != "#[cfg(test)]" {
                    modules(&inner.join("\n"), [&names[..], &[name.to_string()]].concat(), code);
                }
            }
            _ => kept.push(line),
        }
        before = line;
    }
    code.insert(names, kept.join("\n"));
}

/// Every path in code that begins with `super::`, `self::` or `crate::`.
fn paths(code: &str) -> Vec<Names> {
    let mut found = Vec::new();
    for start in ["super::", "self::", "crate::"] {
        for (at, _) in code.match_indices(start) {
            let before = code[..at].chars().next_back();
            if !before.is_some_and(|letter| letter.is_alphanumeric() || "_:$".contains(letter)) {
                found.extend(leaves(&code[at..]).into_iter().map(|(path, _)| path));
            }
        }
    }
    found
}

/// The paths of a tree such as `a::{b, c::{self, d as e}}` that a text begins with, and the names by which they are known
/// then.
fn leaves(text: &str) -> Vec<(Names, String)> {
    let mut found = Vec::new();
    tree(text, &[], &mut found);
    found
}

/// Adds the paths of a tree below `prefix`; what follows the tree.
fn tree<'a>(text: &'a str, prefix: &[String], found: &mut Vec<(Names, String)>) -> &'a str {
    let mut rest = text.trim_start();
    let mut path = prefix.to_vec();
    loop {
        if let Some(mut inner) = rest.strip_prefix('{') {
            while let Some(next) = inner.trim_start().strip_prefix('}').map_or(Some(inner), |_| None) {
                let after = tree(next, &path, found).trim_start();
                inner = after.strip_prefix(',').unwrap_or(after);
                // No tree of imports, but a block of code.
                if after.len() == next.len() || after.is_empty() {
                    return "";
                }
            }
            return inner.trim_start().strip_prefix('}').unwrap_or_default();
        }
        let end = rest.find(|letter: char| !(letter.is_alphanumeric() || "_*".contains(letter))).unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        if name.is_empty() {
            break;
        }
        // `a::{self}` is `a`.
        if name != "self" || path.is_empty() {
            path.push(name.to_string());
        }
        rest = after;
        match after.strip_prefix("::") {
            Some(more) => rest = more,
            None => break,
        }
    }
    let mut name = path.last().cloned().unwrap_or_default();
    if let Some(alias) = rest.trim_start().strip_prefix("as ") {
        let end = alias.find(|letter: char| !(letter.is_alphanumeric() || letter == '_')).unwrap_or(alias.len());
        name = alias[..end].to_string();
        rest = &alias[end..];
    }
    if path.len() > prefix.len() || !prefix.is_empty() {
        found.push((path, name));
    }
    rest
}

/// A crate of two folders.
fn made_up(changed: (&str, &str)) -> BTreeMap<String, Graph> {
    let mut files = BTreeMap::from([
        ("src/a/mod.rs", "mod b;\nmod c;\nmod d;\npub use c::{Made, make as build};\npub struct Shared;"),
        ("src/a/b.rs", "use super::Shared;\nuse super::d;"),
        ("src/a/c.rs", "use super::{Shared,\n    b::{self, B}};\n#[cfg(test)]\nmod tests {\n    use crate::e::f;\n}"),
        ("src/a/d/mod.rs", "use crate::e::f;"),
        ("src/a/d/inner.rs", "use super::super::Shared;"),
        ("src/a/i.rs", "pub(super) mod j {\n    use super::super::b;\n    use super::c;\n}"),
        ("src/a/tests.rs", "use super::c;"),
        ("src/e.rs", "mod f;"),
        ("src/e/f.rs", "fn f() { self::x() }"),
    ]);
    files.insert(changed.0, changed.1);
    Crate::new(files.iter().map(|(path, text)| (Path::new(*path), *text))).folders()
}

/// Circles of folder `a` of the made-up crate after a change of a file.
fn circle_after(path: &str, text: &str) -> Vec<Vec<String>> {
    let folders = made_up((path, text));
    let owned = |circle: Vec<&str>| circle.into_iter().map(str::to_string).collect();
    circles(&folders["a"]).into_iter().map(owned).collect()
}

#[test]
fn circles_are_found_in_a_made_up_crate() {
    let folders = made_up(("src/g.rs", ""));
    let edges: Vec<String> =
        folders["a"].iter().flat_map(|(from, to)| to.keys().map(move |to| format!("{from}->{to}"))).collect();
    assert_eq!(edges, ["b->d", "c->b", "i->b"]);
    assert_eq!(circles(&folders["a"]), [[""; 0]; 0]);
    assert!(circles(&folders["e"]).is_empty());

    let (two, three) = (vec![vec!["b", "d"]], vec![vec!["b", "c", "d"]]);
    // Directly, in the middle of code, by the path from the root, from a folder inside.
    for code in ["use super::b;", "fn d() { super::b::x() }", "use crate::a::{Shared, b::B};"] {
        assert_eq!(circle_after("src/a/d/mod.rs", code), two, "{code}");
    }
    assert_eq!(circle_after("src/a/d/inner.rs", "use super::super::{Shared, b};"), two);
    // Through a third one, also by a name that the parent hands on.
    for code in
        ["use super::c::make;", "use super::Made;", "use super::{Shared, build};", "use crate::a::{b::B, Made};"]
    {
        let found = circle_after("src/a/d/mod.rs", code);
        assert_eq!(found, three, "{code}");
    }
    // What tests import does not count, nor comes from the parent a circle.
    for code in ["#[cfg(test)]\nmod tests {\n    use crate::a::c;\n}", "use super::Shared;", "use crate::e::f;"] {
        assert_eq!(circle_after("src/a/d/mod.rs", code), Vec::<Vec<String>>::new(), "{code}");
    }
}

#[test]
fn trees_of_imports_are_read() {
    let found: Vec<String> = leaves("super::{a, b::{self, c as d},\n e::*}; super::f")
        .iter()
        .map(|(path, name)| format!("{} {name}", path.join("::")))
        .collect();
    assert_eq!(found, ["super::a a", "super::b b", "super::b::c d", "super::e::* *"]);
    let found: Vec<String> =
        paths("crate::a(super::super::b { crate::c }), x::super::d").iter().map(|path| path.join("::")).collect();
    assert_eq!(found, ["super::super::b", "crate::a", "crate::c"]);
}
