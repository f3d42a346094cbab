//! The keys of a spec as a table: for their reader, for listings and for the schema. And how large their numbers may be.

/// Largest width of a query, key or value vector.
pub const MAX_DIM: u64 = 512;

/// Largest factor of a spec: scale, slope or coefficient. Kernels compute in f32, where anything beyond 3.4e38 is infinite
/// and makes not-a-number of every 0 that it meets; this leaves room for what it is multiplied with before it meets data,
/// such as log2 e, a softcap's 1 / cap or a distance.
pub const LARGEST_FACTOR: f64 = 1e30;

/// A key at the top of a spec.
#[derive(Debug)]
pub struct KeyDef {
    /// Its name.
    pub name: &'static str,
    /// What it means.
    pub meaning: &'static str,
    /// What holds when it is left out; `None` where it must be given.
    pub default: Option<&'static str>,
    /// A value as one would write it, in YAML's flow style.
    pub example: &'static str,
}

/// Every key, in the order in which specs are written.
pub const KEYS: [KeyDef; 12] = [
    KeyDef { name: "name", meaning: "what the spec is called", default: None, example: "my-pattern" },
    KeyDef {
        name: "description",
        meaning: "what it is, in one line",
        default: Some("none"),
        example: "Causal, with sinks",
    },
    KeyDef { name: "heads", meaning: "query heads", default: Some("1"), example: "12" },
    KeyDef {
        name: "kv_heads",
        meaning: "key and value heads; they divide heads, and each serves a group of query heads",
        default: Some("heads"),
        example: "4",
    },
    KeyDef { name: "head_dim", meaning: "width of a query or key", default: None, example: "64" },
    KeyDef { name: "value_dim", meaning: "width of a value", default: Some("head_dim"), example: "64" },
    KeyDef {
        name: "dtype",
        meaning: "how queries, keys, values and the output are stored; sums are in f32 always",
        default: Some("f32"),
        example: "f32",
    },
    KeyDef {
        name: "align",
        meaning: "with another number of queries than keys: end puts the last query at the last key, start the first at \
                  the first",
        default: Some("end"),
        example: "end",
    },
    KeyDef {
        name: "inputs",
        meaning: "tensors given at run time, by name, with their shapes",
        default: Some("none"),
        example: "{rel: {shape: [heads, \"2*n - 1\"]}}",
    },
    KeyDef {
        name: "pattern",
        meaning: "who may attend to whom: a node",
        default: None,
        example: "{any: [causal, {sink: 4}]}",
    },
    KeyDef {
        name: "score",
        meaning: "scale of the scores, and what is done to them after",
        default: Some("{scale: 1/sqrt(head_dim)}"),
        example: "{scale: 0.125}",
    },
    KeyDef {
        name: "diffusion",
        meaning: "hops of attention, and how much of V each keeps: {hops, alpha}, {hops: [{pattern}, {}], alpha}, \
                  {hops: all, alpha, tolerance}, {alpha, tolerance}, {heat, hops} or {coefficients}; alpha and \
                  coefficients may be {input: NAME}, given for each head at each call",
        default: Some("one hop, plain attention"),
        example: "{hops: 5, alpha: 0.1}",
    },
];
