//! The spec language: YAML text in, [`PatternSpec`] out, every value with its place in the text.
//!
//! Parsing checks everything that needs no length: keys, types, ranges, expression syntax. What a leaf's
//! arguments mean is the business of [`crate::pattern`], which owns the table of nodes.

use std::sync::Arc;

use crate::error::Span;

mod diffusion;
pub mod expr;
mod keys;
mod nearest;
mod parse;
mod print;
mod read;
pub mod score;
mod set;
mod shipped;
mod source;
mod yaml;

pub use crate::dtype::Dtype;
pub use diffusion::{DEFAULT_TOLERANCE, MAX_HOPS, TYPICAL_ALPHA};
pub use keys::{KEYS, KeyDef, LARGEST_FACTOR, MAX_DIM};
pub use nearest::nearest;
pub use parse::{CheckLeaf, parse, parse_checked, parse_node, parse_source, parse_with, read_value};
pub use print::{flow, quoted};
pub use read::Fields;
pub use score::Inputs;
pub use shipped::{SHIPPED, shipped};
pub use source::Source;

/// A spec as written, with defaults filled in and nothing evaluated that depends on a length.
#[derive(Debug, Clone)]
pub struct PatternSpec {
    /// The `name` key.
    pub name: String,
    /// The `description` key.
    pub description: Option<String>,
    /// Query heads, at least 1.
    pub heads: usize,
    /// Key/value heads, a divisor of `heads`: query head `h` reads key/value head `h / (heads / kv_heads)`
    /// (grouped-query attention; Ainslie et al., EMNLP 2023, arXiv 2305.13245).
    pub kv_heads: usize,
    /// Width of a query or key vector, 1 to 512.
    pub head_dim: usize,
    /// Width of a value vector, 1 to 512.
    pub value_dim: usize,
    /// Where queries stand among the keys, if they are not as many.
    pub align: Align,
    /// Tensors given at run time (`inputs`), in the order of writing.
    pub inputs: Vec<score::InputDef>,
    /// Score mods (`score.mods`), in the order in which they apply.
    pub mods: Vec<score::ModDef>,
    /// Storage of q, k, v and the output.
    pub dtype: Dtype,
    /// Who may attend to whom.
    pub pattern: Node,
    /// Factor on every score (`score.scale`, default 1/sqrt(head_dim)).
    pub scale: f64,
    /// Hops.
    pub diffusion: Diffusion,
    /// The pattern of each hop, where hops have their own; `None` for [`Self::pattern`]. Empty where no hop has one.
    pub hop_patterns: Vec<Option<Node>>,
    /// Place of the `diffusion` key, or of the first line where there is none.
    pub diffusion_at: Span,
    /// The text, for messages.
    pub source: Arc<Source>,
}

impl PatternSpec {
    /// The key/value head that a query head reads.
    pub fn kv_head(&self, head: usize) -> usize {
        head / (self.heads / self.kv_heads)
    }
}

/// Where queries stand among the keys, if they are not as many (the `align` key).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Align {
    /// The last query stands at the last key: query i at position i + kv_len - q_len, which may be negative.
    #[default]
    End,
    /// The first query stands at the first key: query i at position i.
    Start,
}

impl Align {
    /// Position of the first query.
    pub fn first(self, q_len: usize, kv_len: usize) -> i64 {
        match self {
            Self::End => kv_len as i64 - q_len as i64,
            Self::Start => 0,
        }
    }

    /// The word in a spec.
    pub const fn name(self) -> &'static str {
        match self {
            Self::End => "end",
            Self::Start => "start",
        }
    }
}

/// A node of the pattern tree, as written.
#[derive(Debug, Clone)]
pub enum Node {
    /// Union.
    Any(Vec<Node>),
    /// Intersection.
    All(Vec<Node>),
    /// Complement.
    Not(Box<Node>),
    /// A choice by head, at the root only; together the parts hold every head once.
    PerHead(Vec<HeadsNode>),
    /// A leaf, by name; its arguments are read by the leaf's own file in `pattern`.
    Leaf {
        /// Such as `window`.
        name: String,
        /// Place of the name.
        at: Span,
        /// The arguments as written.
        args: Value,
    },
}

/// Some heads and their pattern, in a [`Node::PerHead`].
#[derive(Debug, Clone)]
pub struct HeadsNode {
    /// Query heads, in the order of writing.
    pub heads: Vec<u32>,
    /// Their pattern.
    pub pattern: Node,
}

/// A YAML value with its place.
#[derive(Debug, Clone)]
pub struct Value {
    /// Place of the value.
    pub at: Span,
    /// The value.
    pub data: Data,
}

/// What a YAML value is.
#[derive(Debug, Clone)]
pub enum Data {
    /// `null`, `~` or nothing at all.
    Null,
    /// A plain or quoted scalar, as text; the reader of the value decides its type.
    Scalar {
        /// The text.
        text: String,
        /// Quoted scalars are never numbers or booleans, but may be expressions.
        quoted: bool,
    },
    /// A sequence.
    List(Vec<Value>),
    /// A mapping in order of writing; keys are scalars with their places. Duplicate keys were refused.
    Map(Vec<(String, Span, Value)>),
}

/// The diffusion of a spec.
#[derive(Debug, Clone, PartialEq)]
pub struct Diffusion {
    /// Which function of A is applied to V.
    pub form: DiffusionForm,
    /// How A is stored where a strategy keeps it: f32 or bf16. The meaning does not change, rounding does.
    pub store: Dtype,
}

/// What is applied to V. The numbers of a [`HeadInput`] come with each call.
#[derive(Debug, Clone, PartialEq)]
pub enum DiffusionForm {
    /// Hops whose factors are known.
    Fixed(Factors),
    /// `Z_0 = V`, `Z_{k+1} = (1 - a) A Z_k + a V` with a number a for each head.
    Restart {
        /// How many.
        hops: usize,
        /// The numbers a, `[heads]` or `[1]`.
        alpha: HeadInput,
    },
    /// `Σ θ_k A^k V` with the row θ of the head.
    Polynomial {
        /// Largest k.
        hops: usize,
        /// The rows θ, `[heads, hops + 1]`.
        coefficients: HeadInput,
    },
    /// `a (I - (1 - a) A)^-1 V`: hops without end.
    Limit {
        /// The number a.
        alpha: Alpha,
        /// Where the limit is no forward substitution, the smallest K with `(1 - a)^K <= tolerance` hops are taken.
        tolerance: f64,
    },
}

/// A restart factor.
#[derive(Debug, Clone, PartialEq)]
pub enum Alpha {
    /// Known.
    Fixed(f64),
    /// Given at each call.
    Input(HeadInput),
}

/// Numbers for each head that come with a call, f32.
#[derive(Debug, Clone, Eq)]
pub struct HeadInput {
    /// Their name.
    pub name: String,
    /// Place of the name.
    pub at: Span,
}

impl PartialEq for HeadInput {
    /// Wherever the names were written.
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

/// What a call gives to a diffusion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    /// Its name and place.
    pub input: HeadInput,
    /// Numbers for each head. A single one may be the same for all heads.
    pub columns: usize,
    /// What they may be, besides finite.
    pub range: GivenRange,
}

/// What a number that a call gives may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GivenRange {
    /// Any finite number.
    Any,
    /// 0 to 1.
    Share,
    /// Above 0, at most 1.
    Positive,
}

/// A recurrence over hops.
///
/// Every form of the contract is `Z_0 = initial · V`, `Z_{j+1} = step_j · A Z_j + restart_j · V`:
/// restart diffusion (Feng et al., AAAI 2023, eq. 7) directly, polynomials in A by Horner's rule.
#[derive(Debug, Clone, PartialEq)]
pub struct Factors {
    /// Factor on V before the first hop.
    pub initial: f64,
    /// One entry a hop, in the order of execution; empty for zero hops.
    pub hops: Vec<HopFactors>,
}

/// The factors of one hop: `Z' = step · A Z + restart · V`.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct HopFactors {
    /// Factor on A Z.
    pub step: f64,
    /// Factor on V.
    pub restart: f64,
}
