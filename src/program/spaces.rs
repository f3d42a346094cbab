//! What an operation makes of the spaces of its operands: the rule of types, as the reader and the verifier apply it.

use smallvec::{SmallVec, smallvec};

use super::{Op, Shape, Space, ValueId};

/// The spaces of the results of an operation: as many as it may have, of which it has all, or, where the second is a
/// maximum, one.
///
/// # Errors
/// What does not fit, in words.
pub fn spaces(op: &Op, shape: &Shape, space: impl Fn(ValueId) -> Space) -> Result<SmallVec<[Space; 2]>, String> {
    let op_name = op.name();
    let refuse = |what: &str| Err(format!("{op_name} of {what}"));
    // Rows of queries and rows of keys are as good as each other where they are as many.
    let width = |id: ValueId| match space(id) {
        Space::Queries(width) => Ok(width),
        Space::Keys(width) if shape.q_len == shape.kv_len => Ok(width),
        other => Err(format!("{op_name} of {other:?} where rows of queries are needed")),
    };
    let key_width = |id: ValueId| match space(id) {
        Space::Keys(width) => Ok(width),
        Space::Queries(width) if shape.q_len == shape.kv_len => Ok(width),
        other => Err(format!("{op_name} of {other:?} where rows of keys are needed")),
    };
    let same = |a: usize, b: usize| if a == b { Ok(()) } else { Err(format!("{op_name} of widths {a} and {b}")) };
    let pairs = |id: ValueId| match space(id) {
        Space::Pairs => Ok(()),
        other => Err(format!("{op_name} of {other:?} where pairs are needed")),
    };
    let query = |id: ValueId| match space(id) {
        Space::Query => Ok(()),
        other => Err(format!("{op_name} of {other:?} where a number for each query is needed")),
    };
    let each = |id: Option<ValueId>| id.map_or(Ok(()), query);
    Ok(match op {
        Op::Pack { x, .. } => {
            let mut all = 0_usize;
            for &x in x {
                all = all.saturating_add(width(x)?);
            }
            if x.is_empty() {
                return refuse("nothing");
            }
            smallvec![Space::Packed(all)]
        }
        Op::Sddmm { x, y, .. } => {
            let Space::Packed(packed) = space(*x) else { return refuse("queries that are not packed") };
            let mut all = 0_usize;
            for &y in y {
                all = all.saturating_add(key_width(y)?);
            }
            same(packed, all)?;
            smallvec![Space::Pairs, Space::Query]
        }
        Op::Scale { s, .. } | Op::Mask { s } => {
            pairs(*s)?;
            smallvec![Space::Pairs]
        }
        Op::Copy { x } => match space(*x) {
            here @ (Space::Pairs | Space::Queries(_) | Space::Keys(_)) => smallvec![here],
            Space::Packed(_) | Space::Query => return refuse("what is neither pairs nor rows"),
        },
        Op::Mods { s, .. } => {
            pairs(*s)?;
            smallvec![Space::Pairs, Space::Query]
        }
        Op::RowMax { s } => {
            pairs(*s)?;
            smallvec![Space::Query]
        }
        Op::Exp { s, m, .. } => {
            pairs(*s)?;
            query(*m)?;
            smallvec![Space::Pairs, Space::Query]
        }
        Op::Dropout { x, hop } => match (space(*x), hop) {
            (Space::Pairs, None) => smallvec![Space::Pairs],
            (here @ (Space::Queries(_) | Space::Keys(_)), Some(_)) => {
                width(*x)?;
                smallvec![here]
            }
            _ => return refuse("pairs with a hop, or of rows without"),
        },
        Op::Spmm { p, z, l, plus, onto, .. } => {
            pairs(*p)?;
            each(*l)?;
            let of = key_width(*z)?;
            if let Some((rows, _)) = plus {
                same(of, width(*rows)?)?;
            }
            if let Some(onto) = onto {
                let Space::Queries(onto) = space(*onto) else { return refuse("rows that go onto no queries") };
                same(of, onto)?;
            }
            smallvec![Space::Queries(of)]
        }
        Op::Solve { p, l, plus, .. } => {
            pairs(*p)?;
            query(*l)?;
            smallvec![Space::Queries(width(plus.0)?)]
        }
        Op::SolveT { p, x, l, .. } => {
            pairs(*p)?;
            query(*l)?;
            smallvec![Space::Queries(width(*x)?)]
        }
        Op::Combine { x, y, .. } => {
            let Space::Queries(of) = space(*x) else { return refuse("what is no rows of queries") };
            same(of, width(*y)?)?;
            smallvec![Space::Queries(of)]
        }
        Op::Join { x, m, l } => {
            query(*m)?;
            query(*l)?;
            let Space::Queries(of) = space(*x) else { return refuse("what is no rows of queries") };
            smallvec![Space::Queries(of)]
        }
        Op::ScaleRows { x, l, .. } => {
            each(*l)?;
            smallvec![Space::Queries(width(*x)?)]
        }
        Op::DotRows { x, y, minus, l, onto, .. } => {
            each(*l)?;
            each(*onto)?;
            let of = width(*x)?;
            same(of, width(*y)?)?;
            if let Some((rows, _)) = minus {
                same(of, width(*rows)?)?;
            }
            smallvec![Space::Query]
        }
        Op::SoftmaxGradient { p, dp, delta, dropout, .. } => {
            pairs(*p)?;
            pairs(*dp)?;
            query(*delta)?;
            if *dropout { smallvec![Space::Pairs, Space::Pairs] } else { smallvec![Space::Pairs] }
        }
        Op::ModsGradient { s, ds, .. } => {
            pairs(*s)?;
            pairs(*ds)?;
            smallvec![Space::Pairs]
        }
        Op::SpmmT { p, x, onto } => {
            pairs(*p)?;
            let of = width(*x)?;
            if let Some(onto) = onto {
                let Space::Keys(onto) = space(*onto) else { return refuse("rows that go onto no keys") };
                same(of, onto)?;
            }
            smallvec![Space::Keys(of)]
        }
        Op::AddRows { x, onto, .. } => {
            same(width(*x)?, width(*onto)?)?;
            smallvec![space(*onto)]
        }
        Op::SumRows { x, .. } => {
            query(*x)?;
            smallvec![Space::Query]
        }
    })
}
