//! `schema`: the spec language as a JSON Schema (2020-12), for completion and checks in editors.
//!
//! Made from the tables that the reader uses: [`KEYS`], [`NODES`] and their arguments. It describes the form of a
//! spec; what needs lengths, and what an expression says, only `hopweave check` and the compiler know.

use serde_json::{Map, Value, json};

use super::say::print;
use crate::error::Result;
use crate::limits::Limit;
use crate::pattern::{ArgDef, COMBINATORS, Kind, NODES, NodeDef};
use crate::spec::score::{SCORE_MODS, ScoreModDef};
use crate::spec::{KEYS, MAX_DIM, MAX_HOPS};

/// Prints the schema.
///
/// # Errors
/// When standard output cannot be written.
pub fn run() -> Result<()> {
    print(&format!("{:#}\n", schema()))
}

/// The schema of a spec.
fn schema() -> Value {
    let properties: Map<String, Value> = KEYS
        .iter()
        .map(|key| {
            let mut value = key_schema(key.name);
            let default = key.default.map_or("required".into(), |default| format!("default: {default}"));
            value["description"] = json!(format!("{} ({default})", key.meaning));
            value["examples"] = json!([example(key.example)]);
            (key.name.to_string(), value)
        })
        .collect();
    let required: Vec<&str> = KEYS.iter().filter(|key| key.default.is_none()).map(|key| key.name).collect();
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Hopweave spec",
        "description": "A sparse, multi-hop attention pattern for the compiler hopweave",
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": false,
        "$defs": {
            "expression": {
                "description": "An integer, or an expression over n (keys), m (queries) and d (head_dim) with \
                                + - * / // % **, parentheses, min max floor ceil round sqrt log2 abs",
                "type": ["number", "string"],
                "examples": [64, "max(32, n/64)"],
            },
            "tokens": tokens(),
            "node": node(false),
            "root": node(true),
        },
    })
}

/// YAML in flow style as JSON.
fn example(text: &str) -> Value {
    serde_yaml::from_str(text).unwrap_or(Value::Null)
}

fn key_schema(name: &str) -> Value {
    let dim = || json!({"type": "integer", "minimum": 1, "maximum": MAX_DIM});
    match name {
        "heads" | "kv_heads" => json!({"type": "integer", "minimum": 1, "maximum": Limit::Heads.default()}),
        "head_dim" | "value_dim" => dim(),
        "dtype" => json!({"enum": ["f32", "bf16", "f16"]}),
        "align" => json!({"enum": ["end", "start"]}),
        "inputs" => json!({
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "properties": {"shape": {"type": "array", "items": {"type": ["integer", "string"]}}},
                "required": ["shape"],
            },
        }),
        "pattern" => json!({"$ref": "#/$defs/root"}),
        "score" => json!({
            "type": "object",
            "properties": {
                "scale": {"type": "number", "description": "factor on every score; 1/sqrt(head_dim) when left out"},
                "mods": {
                    "type": "array",
                    "items": score_mod(),
                    "description": "what is done to the scaled score, in order",
                },
            },
            "additionalProperties": false,
        }),
        "diffusion" => diffusion(),
        _ => json!({"type": "string"}),
    }
}

/// A score mod: the name of one that needs no arguments, or a mapping with one key.
fn score_mod() -> Value {
    let value_of = |mod_name: &str, arg: &str| match (mod_name, arg) {
        ("softcap", "") => json!({"type": "number", "exclusiveMinimum": 0}),
        ("alibi", "slopes") => json!({"type": "array", "items": {"type": "number"}, "minItems": 1}),
        ("bias", "index") => json!({"type": "array", "items": {"type": ["string", "integer"]}, "minItems": 1}),
        _ => json!({"type": "string"}),
    };
    let mut properties = Map::new();
    for def in SCORE_MODS {
        let mut value = match def.args {
            [("", ..)] => value_of(def.name, ""),
            args => {
                let mut inner = Map::new();
                for (arg, _, default, meaning) in args {
                    let mut value = value_of(def.name, arg);
                    let default = default.map(|default| format!("; {default} when left out")).unwrap_or_default();
                    value["description"] = json!(format!("{meaning}{default}"));
                    inner.insert((*arg).into(), value);
                }
                let required: Vec<&str> =
                    args.iter().filter(|(_, _, default, _)| default.is_none()).map(|(arg, ..)| *arg).collect();
                json!({"type": "object", "properties": inner, "required": required, "additionalProperties": false})
            }
        };
        describe(&mut value, def.name, def.meaning, def.example);
        properties.insert(def.name.into(), value);
    }
    let optional = |def: &&ScoreModDef| def.args.iter().all(|(_, _, default, _)| default.is_some());
    let words: Vec<&str> = SCORE_MODS.iter().filter(optional).map(|def| def.name).collect();
    word_or_mapping(&words, &properties)
}

fn diffusion() -> Value {
    let hops = json!({"type": "integer", "minimum": 0, "maximum": MAX_HOPS, "description": "how often A is applied"});
    let alpha = json!({"type": "number", "minimum": 0, "maximum": 1, "description": "share of V that every hop keeps"});
    let form = |description: &str, properties: &[(&str, &Value)], required: &[&str]| {
        let mut all: Map<String, Value> =
            properties.iter().map(|(name, schema)| (name.to_string(), (*schema).clone())).collect();
        all.insert("store".into(), json!({"enum": ["f32", "bf16"], "description": "how A is stored, where it is"}));
        json!({
            "description": description,
            "type": "object",
            "properties": all,
            "required": required,
            "additionalProperties": false,
        })
    };
    let tolerance = json!({"type": "number", "minimum": 0, "maximum": 1, "description": "hops until (1 - alpha)^hops is no larger"});
    let heat = json!({"type": "number", "minimum": 0, "maximum": 1e6, "description": "time of the heat kernel"});
    let coefficients = json!({
        "type": "array",
        "items": {"type": "number"},
        "minItems": 1,
        "maxItems": MAX_HOPS + 1,
        "description": "factors of V, A V, A^2 V, ...",
    });
    let given = |what: &str| {
        json!({
            "type": "object",
            "properties": {"input": {"type": "string", "minLength": 1, "description": what}},
            "required": ["input"],
            "additionalProperties": false,
        })
    };
    let alpha_input = given("name of the f32 tensor [heads] or [1] that each call brings");
    let theta_input = given("name of the f32 tensor [heads, hops + 1] that each call brings");
    let either_alpha = json!({"anyOf": [alpha, alpha_input], "description": "share of V that every hop keeps"});
    let positive = json!({"anyOf": [
        {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
        alpha_input,
    ], "description": "share of V that every hop keeps"});
    let some_tolerance = json!({"type": "number", "exclusiveMinimum": 0, "maximum": 1, "description": "for patterns that are not causal: hops until (1 - alpha)^hops is no larger"});
    let own =
        json!({"type": "object", "properties": {"pattern": {"$ref": "#/$defs/root"}}, "additionalProperties": false});
    let list = json!({"type": "array", "items": own, "minItems": 1, "maxItems": MAX_HOPS, "description": "the pattern of each hop; {} is the root's"});
    let some_hops = json!({"anyOf": [hops, list]});
    let all_hops = json!({"const": "all", "description": "hops without end"});
    json!({"oneOf": [
        form("Z' = (1 - alpha) A Z + alpha V, so many times", &[("hops", &some_hops), ("alpha", &either_alpha)], &["hops"]),
        form("the limit alpha (I - (1 - alpha) A)^-1 V", &[("hops", &all_hops), ("alpha", &positive), ("tolerance", &some_tolerance)], &["hops", "alpha"]),
        form("the same, as often as the tolerance asks", &[("alpha", &alpha), ("tolerance", &tolerance)], &["alpha", "tolerance"]),
        form("the heat kernel, cut after some hops", &[("heat", &heat), ("hops", &hops)], &["heat", "hops"]),
        form("a polynomial in A", &[("coefficients", &coefficients)], &["coefficients"]),
        form("a polynomial in A whose coefficients come with the call", &[("coefficients", &theta_input), ("hops", &hops)], &["coefficients", "hops"]),
    ]})
}

/// A node: the name of one without arguments, or a mapping with one key.
fn node(root: bool) -> Value {
    let mut properties = Map::new();
    for combinator in COMBINATORS.iter().filter(|combinator| root || combinator.name != "per_head") {
        let nodes = json!({"type": "array", "items": {"$ref": "#/$defs/node"}, "minItems": 1});
        let mut value = match combinator.name {
            "not" => json!({"$ref": "#/$defs/node"}),
            "per_head" => per_head(),
            _ => nodes,
        };
        describe(&mut value, combinator.name, combinator.meaning, combinator.example);
        properties.insert(combinator.name.into(), value);
    }
    for def in NODES {
        let mut value = arguments(def);
        describe(&mut value, def.name, def.meaning, def.example);
        properties.insert(def.name.into(), value);
    }
    let words: Vec<&str> = NODES.iter().filter(|def| def.args.is_empty()).map(|def| def.name).collect();
    word_or_mapping(&words, &properties)
}

/// One of the words, or a mapping with one of the properties as its only key.
fn word_or_mapping(words: &[&str], properties: &Map<String, Value>) -> Value {
    json!({"anyOf": [
        {"enum": words},
        {
            "type": "object",
            "properties": properties,
            "additionalProperties": false,
            "minProperties": 1,
            "maxProperties": 1,
        },
    ]})
}

fn describe(value: &mut Value, name: &str, meaning: &str, text: &str) {
    value["description"] = json!(format!("{meaning}. Example: `{text}`"));
    let inner = example(text).get(name).cloned();
    if let Some(inner) = inner.filter(|inner| !inner.is_null()) {
        value["examples"] = json!([inner]);
    }
}

fn per_head() -> Value {
    json!({
        "type": "array",
        "items": {
            "type": "object",
            "properties": {
                "heads": {
                    "description": "a list of heads, or a range without its end, such as \"0..6\"",
                    "anyOf": [
                        {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
                        {"type": "string", "pattern": r"^\s*\d+\s*\.\.\s*\d+\s*$"},
                    ],
                },
                "pattern": {"$ref": "#/$defs/node"},
            },
            "required": ["heads", "pattern"],
            "additionalProperties": false,
        },
    })
}

/// What stands after a leaf's name.
fn arguments(def: &NodeDef) -> Value {
    match def.args {
        [] => return json!({"type": ["null", "object"], "maxProperties": 0}),
        [only] if only.name.is_empty() => return argument(only),
        _ => {}
    }
    let properties: Map<String, Value> = def
        .args
        .iter()
        .map(|arg| {
            let mut value = argument(arg);
            value["description"] = json!(format!("{} ({})", arg.meaning, def.need(arg)));
            (arg.name.to_string(), value)
        })
        .collect();
    let in_form = |name: &str| def.forms.iter().any(|form| form.contains(&name));
    let required: Vec<&str> =
        def.args.iter().filter(|arg| arg.default.is_none() && !in_form(arg.name)).map(|arg| arg.name).collect();
    let mut schema = json!({
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": false,
    });
    if !def.forms.is_empty() {
        let forms: Vec<Value> = def
            .forms
            .iter()
            .map(|form| {
                let others = def.forms.iter().copied().flatten().filter(|name| !form.contains(name));
                let without: Map<String, Value> = others.map(|name| (name.to_string(), json!(false))).collect();
                json!({"required": form, "properties": without})
            })
            .collect();
        schema["oneOf"] = json!(forms);
    }
    schema
}

fn argument(arg: &ArgDef) -> Value {
    let list = |items: Value| json!({"type": "array", "items": items});
    match arg.kind {
        Kind::Integer => json!({"$ref": "#/$defs/expression"}),
        Kind::Integers => list(json!({"$ref": "#/$defs/expression"})),
        Kind::Seed => json!({"type": "integer", "minimum": 0}),
        Kind::Share => json!({"type": "number", "exclusiveMinimum": 0, "maximum": 1}),
        Kind::Flag => json!({"type": "boolean"}),
        Kind::Flags => list(json!({"type": "boolean"})),
        Kind::Choice(words) => json!({"enum": words}),
        Kind::Tokens => json!({"$ref": "#/$defs/tokens"}),
        Kind::Condition => json!({"type": ["string", "boolean"]}),
        Kind::Layout => {
            let entry = json!({"type": "integer", "minimum": 0});
            list(list(json!({"anyOf": [entry.clone(), list(entry)]})))
        }
        Kind::Pairs => list(json!({
            "type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 2, "maxItems": 2,
        })),
        Kind::File | Kind::Input => json!({"type": "string"}),
    }
}

/// A set of positions.
fn tokens() -> Value {
    let form = |properties: Value, required: &str| {
        json!({
            "type": "object", "properties": properties, "required": [required], "additionalProperties": false,
        })
    };
    let expression = || json!({"$ref": "#/$defs/expression"});
    let random = json!({
        "type": "object",
        "properties": {"count": expression(), "seed": {"type": "integer", "minimum": 0}, "from": expression()},
        "required": ["count", "seed"],
        "additionalProperties": false,
    });
    json!({
        "description": "Positions: a list, the first, the last, every so many, or drawn",
        "anyOf": [
            {"type": "array", "items": expression()},
            form(json!({"first": expression()}), "first"),
            form(json!({"last": expression()}), "last"),
            form(json!({"every": expression(), "offset": expression()}), "every"),
            form(json!({"random": random}), "random"),
        ],
    })
}
