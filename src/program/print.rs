//! The text form of a program; [`super::parse`] reads it back.

use std::fmt::{self, Write};

use super::{Base, BlockTest, Body, Extent, Factor, Loop, Op, Operation, Program, Shape, Stage, Tensor, ValueId};
use crate::spec::Given;

impl Program {
    /// The text form.
    pub fn print(&self) -> String {
        let mut out = self.print_nest();
        out.push_str("neighbors\n");
        out.push_str(&self.neighbors.print());
        for (i, other) in self.others.iter().enumerate() {
            let _ = writeln!(out, "{OF_SET}{}", i + 1);
            out.push_str(&other.print());
        }
        out
    }

    /// The text form without the neighbors.
    pub fn print_nest(&self) -> String {
        print_nest(&self.shape, self.block_test, &self.body)
    }
}

/// What begins the neighbors of a further set.
pub(super) const OF_SET: &str = "neighbors of set ";

/// The text form of a nest; [`super::parse_nest`] reads it back.
pub fn print_nest(shape: &Shape, block_test: BlockTest, body: &Body) -> String {
    let test = match block_test {
        BlockTest::Every => "every",
        BlockTest::Partial => "partial",
    };
    format!("{shape}\nblocks test {test}\n{body}")
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { heads, kv_heads, q_len, kv_len, head_dim, value_dim, dtype, store } = self;
        write!(f, "program heads {heads} kv_heads {kv_heads} q_len {q_len} kv_len {kv_len}")?;
        write!(f, " head_dim {head_dim} value_dim {value_dim}")?;
        if !dtype.is_f32() {
            write!(f, " dtype {dtype}")?;
        }
        if !store.is_f32() {
            write!(f, " store {store}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(Given { input, columns, range }) = &self.given {
            writeln!(f, "given {} {columns} {}", input.name, range.name())?;
        }
        self.loops.iter().try_for_each(|one| self.print_loop(f, one))?;
        let roots = self.roots();
        for (value, _) in
            self.values.iter().zip(&roots).enumerate().filter(|(i, (_, root))| root.0 as usize == *i).map(|x| x.1)
        {
            write!(f, "keep {} {}", value.name, value.extent)?;
            if !value.store.is_f32() {
                write!(f, " {}", value.store)?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for Factor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { constant, slope, column } = self;
        match self.is_given() {
            true => write!(f, "{constant:?}{slope:+?}@{column}"),
            false => write!(f, "{constant:?}"),
        }
    }
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tensor(tensor) => write!(f, "tensor {}", tensor.name()),
            Self::All => f.write_str("all"),
            Self::Ring(rows) => write!(f, "ring {rows}"),
            Self::Row => f.write_str("row"),
            Self::Keys => f.write_str("keys"),
        }
    }
}

impl Tensor {
    /// Every tensor.
    pub const ALL: [Self; 8] =
        [Self::Q, Self::K, Self::V, Self::Out, Self::GradOut, Self::GradQ, Self::GradK, Self::GradV];

    /// Its name in the text form.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Q => "q",
            Self::K => "k",
            Self::V => "v",
            Self::Out => "out",
            Self::GradOut => "grad_out",
            Self::GradQ => "grad_q",
            Self::GradK => "grad_k",
            Self::GradV => "grad_v",
        }
    }
}

impl Body {
    fn print_loop(&self, f: &mut fmt::Formatter<'_>, one: &Loop) -> fmt::Result {
        let Loop { parts, set, edge_rows, halo, stages } = one;
        f.write_str(if *parts { "for part, row" } else { "for row" })?;
        if *set != 0 {
            write!(f, ", set {set}")?;
        }
        if *edge_rows != 1 {
            write!(f, ", edges by {edge_rows}")?;
        }
        f.write_str(if *halo { ", halo {\n" } else { " {\n" })?;
        for Stage { shift, by_keys, ops } in stages {
            f.write_str("  at row")?;
            if *shift != 0 {
                write!(f, " - {shift}")?;
            }
            f.write_str(if *by_keys { " by keys {\n" } else { " {\n" })?;
            for operation in ops {
                writeln!(f, "    {}", self.print_op(operation))?;
            }
            f.write_str("  }\n")?;
        }
        f.write_str("}\n")
    }

    /// One operation, in one line but for the score mods.
    pub fn print_op(&self, operation: &Operation) -> String {
        let name = |id: &ValueId| self.values.get(id.0 as usize).map_or("?", |value| value.name.as_str());
        let names = |ids: &[ValueId]| ids.iter().map(name).collect::<Vec<_>>().join(" ");
        let over = |l: &Option<ValueId>| l.map_or(String::new(), |l| format!(" / {}", name(&l)));
        let onto = |onto: &Option<ValueId>| onto.map_or(String::new(), |onto| format!(" onto {}", name(&onto)));
        let of_hop = |hop: &Option<u32>| hop.map_or(String::new(), |hop| format!(" hop {hop}"));
        let with = |masked: bool| match (masked, operation.results.len() > 1) {
            (true, true) => " with mask rowmax",
            (true, false) => " with mask",
            (false, true) => " with rowmax",
            (false, false) => "",
        };
        let results = operation.results.iter().map(name).collect::<Vec<_>>().join(", ");
        let op = operation.op.name();
        let mut out = format!("{results} = {op} ");
        // Writing to a string cannot fail.
        let _ = match &operation.op {
            Op::Pack { x, factor } => write!(out, "{} * {factor:?}", names(x)),
            Op::Sddmm { x, y, masked } => write!(out, "{} {}{}", name(x), names(y), with(*masked)),
            Op::Scale { s, factor } => write!(out, "{} * {factor:?}", name(s)),
            Op::Copy { x } => write!(out, "{}", name(x)),
            Op::Mods { s, mods, factor, masked } => {
                let _ = writeln!(out, "{} {{", name(s));
                for line in mods.to_string().lines() {
                    let _ = writeln!(out, "      {line}");
                }
                write!(out, "    }} * {factor:?}{}", with(*masked))
            }
            Op::Mask { s } | Op::RowMax { s } => write!(out, "{}", name(s)),
            Op::Exp { s, m, base, masked } => {
                let base = match base {
                    Base::E => "e",
                    Base::Two => "2",
                };
                write!(out, "{base} {} - {}{}", name(s), name(m), if *masked { " with mask" } else { "" })
            }
            Op::Dropout { x, hop } => write!(out, "{}{}", name(x), of_hop(hop)),
            Op::Spmm { p, z, l, factor, plus, onto: to } => {
                let _ = write!(out, "{} {}{} * {factor}", name(p), name(z), over(l));
                if let Some((rows, factor)) = plus {
                    let _ = write!(out, " + {} * {factor}", name(rows));
                }
                write!(out, "{}", onto(to))
            }
            Op::Solve { p, l, factor, plus: (rows, by) } => {
                write!(out, "{} / {} * {factor} + {} * {by}", name(p), name(l), name(rows))
            }
            Op::SolveT { p, x, l, factor } => write!(out, "{} {} / {} * {factor}", name(p), name(x), name(l)),
            Op::Combine { x, y, factor } => write!(out, "{} + {} * {factor}", name(x), name(y)),
            Op::Join { x, m, l } => write!(out, "{} {} {}", name(x), name(m), name(l)),
            Op::ScaleRows { x, l, factor } => write!(out, "{}{} * {factor}", name(x), over(l)),
            Op::DotRows { x, y, minus, hop, l, onto: to } => {
                let _ = write!(out, "{} {}", name(x), name(y));
                if let Some((rows, factor)) = minus {
                    let _ = write!(out, " - {} * {factor}", name(rows));
                }
                write!(out, "{}{}{}", of_hop(hop), over(l), onto(to))
            }
            Op::SoftmaxGradient { p, dp, delta, factor, dropout } => {
                let with = if *dropout { " with dropout" } else { "" };
                write!(out, "{} {} - {} * {factor:?}{with}", name(p), name(dp), name(delta))
            }
            Op::ModsGradient { s, ds, factor } => write!(out, "{} {} * {factor:?}", name(s), name(ds)),
            Op::SpmmT { p, x, onto: to } => write!(out, "{} {}{}", name(p), name(x), onto(to)),
            Op::SumRows { x, column, factor } => write!(out, "{} * {factor:?} in {column}", name(x)),
            Op::AddRows { x, factor, onto } => write!(out, "{} * {factor} onto {}", name(x), name(onto)),
        };
        out
    }
}
