//! `hopweave schema` against a validator of JSON Schema: what the parser takes it takes, and most of what the parser
//! refuses it refuses.

use std::path::Path;
use std::process::Command;

use hopweave::pattern::{COMBINATORS, NODES};
use serde_json::{Value, json};

fn schema() -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_hopweave")).arg("schema").output().expect("the command");
    assert!(output.status.success());
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// A validator of the schema.
struct Validator {
    schemas: boon::Schemas,
    index: boon::SchemaIndex,
}

impl Validator {
    fn new() -> Self {
        let mut schemas = boon::Schemas::new();
        let mut compiler = boon::Compiler::new();
        compiler.add_resource("schema.json", schema()).expect("a resource");
        let index = compiler.compile("schema.json", &mut schemas).unwrap_or_else(|error| panic!("{error:#}"));
        Self { schemas, index }
    }

    fn assert_valid(&self, spec: &Value, name: &str) {
        if let Err(error) = self.schemas.validate(spec, self.index) {
            panic!("{name}: {error:#}");
        }
    }
}

fn value(yaml: &str) -> Value {
    serde_yaml::from_str(yaml).unwrap_or_else(|error| panic!("{yaml}\n{error}"))
}

#[test]
fn pattern_files_and_examples_are_valid() {
    let validator = Validator::new();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("patterns");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).expect("the folder of patterns") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            let spec = value(&std::fs::read_to_string(&path).expect("a text"));
            validator.assert_valid(&spec, &path.display().to_string());
            count += 1;
        }
    }
    assert!(count >= 13);
    let examples = NODES.iter().map(|def| def.example).chain(COMBINATORS.iter().map(|def| def.example));
    for example in examples {
        let spec = json!({"name": "x", "head_dim": 4, "pattern": value(example)});
        validator.assert_valid(&spec, example);
    }
}

#[test]
fn every_node_and_argument_is_described() {
    let schema = schema();
    let properties = &schema["$defs"]["root"]["anyOf"][1]["properties"];
    for def in NODES {
        let node = &properties[def.name];
        let description = node["description"].as_str().expect("a description");
        assert!(description.contains(def.meaning) && description.contains(def.example), "{}", def.name);
        for arg in def.args.iter().filter(|arg| !arg.name.is_empty()) {
            let text = node["properties"][arg.name]["description"].as_str().expect("a description");
            assert!(text.starts_with(arg.meaning), "{} {}", def.name, arg.name);
        }
    }
    assert!(schema["$defs"]["node"]["anyOf"][1]["properties"].get("per_head").is_none());
}

#[test]
fn score_mods_are_described_and_their_examples_valid() {
    let validator = Validator::new();
    for def in hopweave::spec::score::SCORE_MODS {
        let spec = json!({
            "name": "x", "head_dim": 4, "pattern": "full",
            "inputs": {"rel": {"shape": ["heads", "2*n - 1"]}},
            "score": {"mods": [value(def.example)]},
        });
        validator.assert_valid(&spec, def.example);
        let text = schema()["properties"]["score"]["properties"]["mods"].to_string();
        assert!(text.contains(def.meaning), "{}", def.name);
    }
}

#[test]
fn forms_of_diffusion_are_valid_as_the_parser_takes_them() {
    let validator = Validator::new();
    for form in [
        "{hops: 0}",
        "{hops: 5, alpha: 0.1, store: bf16}",
        "{hops: 5, alpha: {input: a}}",
        "{hops: [{pattern: causal}, {}, {pattern: {per_head: [{heads: [0], pattern: full}]}}], alpha: {input: a}}",
        "{hops: all, alpha: 1}",
        "{hops: all, alpha: {input: a}, tolerance: 1.0e-3}",
        "{alpha: 0.1, tolerance: 0.01}",
        "{heat: 2, hops: 4}",
        "{coefficients: [0.5, -0.5]}",
        "{coefficients: {input: theta}, hops: 3, store: bf16}",
    ] {
        let text = format!("name: x\nhead_dim: 4\npattern: full\ndiffusion: {form}\n");
        validator.assert_valid(&value(&text), form);
        let read = hopweave::pattern::read(hopweave::spec::Source::new(text.as_str(), "x"), &[]);
        read.unwrap_or_else(|error| panic!("{error}"));
    }
}

#[test]
fn wrong_specs_are_invalid() {
    let validator = Validator::new();
    let with = |more: &str| format!("name: x\nhead_dim: 4\n{more}\n");
    for text in [
        "name: x\nhead_dim: 4\n".to_string(),
        "head_dim: 4\npattern: full\n".to_string(),
        with("pattern: full\nhead: 2"),
        with("pattern: fulll"),
        with("pattern: {window: {radius: 3, left: 2}}"),
        with("pattern: {window: {left: 2}}"),
        with("pattern: {window: {}}"),
        with("pattern: {window: {radius: 2, dilatation: 2}}"),
        with("pattern: {causal: {}, sink: 4}"),
        with("pattern: {any: []}"),
        with("pattern: {any: [{per_head: [{heads: [0], pattern: full}]}]}"),
        with("pattern: {per_head: [{heads: 0-6, pattern: full}]}"),
        with("pattern: {random: {keys_per_query: 4}}"),
        with("pattern: {random: {keys_per_query: 4, seed: 1, among: future}}"),
        with("pattern: {blocks: {block: 4, layout: [[1]], file: a.npy}}"),
        with("pattern: {edges: {pairs: [[1, 2, 3]]}}"),
        with("pattern: {grid: {shape: [4, 4]}}"),
        with("pattern: {global: {tokens: {first: 1, last: 2}}}"),
        with("pattern: full\ndiffusion: {hops: 3, tolerance: 0.1}"),
        with("pattern: full\ndiffusion: {hops: all}"),
        with("pattern: full\ndiffusion: {hops: all, alpha: 0}"),
        with("pattern: full\ndiffusion: {hops: some, alpha: 0.1}"),
        with("pattern: full\ndiffusion: {hops: [], alpha: 0.1}"),
        with("pattern: full\ndiffusion: {hops: [{patern: causal}]}"),
        with("pattern: full\ndiffusion: {hops: 3, alpha: {inputs: a}}"),
        with("pattern: full\ndiffusion: {hops: 3, alpha: {input: \"\"}}"),
        with("pattern: full\ndiffusion: {coefficients: {input: theta}}"),
        with("pattern: full\ndiffusion: {alpha: {input: a}, tolerance: 0.1}"),
        with("pattern: full\nalign: middle"),
        with("pattern: full\nheads: 0"),
        with("pattern: full\nscore: {mods: [softcap]}"),
        with("pattern: full\nscore: {mods: [{softcap: 0}]}"),
        with("pattern: full\nscore: {mods: [{alibi: {slope: [1]}}]}"),
        with("pattern: full\nscore: {mods: [{bias: {input: rel}}]}"),
        with("pattern: full\nscore: {mods: [tanh]}"),
    ] {
        assert!(validator.schemas.validate(&value(&text), validator.index).is_err(), "{text}");
        let refused = hopweave::pattern::read(hopweave::spec::Source::new(text.as_str(), "x"), &[]).is_err();
        assert!(refused, "the parser takes {text}");
    }
}
