//! Whatever an operation reads has been made when it runs, for every row that it reads, and is still there.
//!
//! A loop steps through the block rows; at step i, a stage with shift r works on row i - r, stages in order, and their
//! operations in order. Row t of a value that a stage with shift a makes is there from step t + a on. An operation at shift
//! b on row t reads row t at step t + b, and rows t - behind ..= t + ahead where it reads neighbors. So:
//!
//! - what is read in the loop that makes it needs b >= a, or b >= a + ahead for neighbors, in another stage;
//! - what is overwritten at shift c by an operation after the reader needs c >= b, or c >= b + behind for neighbors;
//! - a ring of r rows needs r > b - a, or r > b - a + behind for neighbors.
//!
//! An operation that adds to rows of keys writes rows of all steps: its result is complete only when its loop is. Additions
//! to one value come in any order.

use super::sites::{Site, Sites, name, op, scatters};
use crate::mask::QUERY_BLOCK;
use crate::program::{Access, Body, Extent, Reach, Shape, Space, ValueId};

/// A value whose rows are read by their neighbors in a loop that makes them.
pub(super) fn goes_by_reach<'a>(body: &'a Body, sites: &Sites) -> Option<&'a str> {
    roots(body, sites).find_map(|root| {
        let made: Vec<usize> = sites.chain(root).filter_map(|id| sites.made(id)).map(|site| site.one).collect();
        sites.chain(root).find_map(|id| {
            let mut neighbors = sites.read(id).iter().filter(|(_, access)| *access == Access::Neighbors);
            neighbors.any(|(site, _)| made.contains(&site.one)).then(|| name(body, id))
        })
    })
}

pub(super) fn check(shape: &Shape, body: &Body, sites: &Sites, reach: Option<Reach>) -> Result<(), String> {
    let order = Order { body, sites, reach };
    let rows = shape.q_len.div_ceil(QUERY_BLOCK).max(1);
    for root in roots(body, sites) {
        // What made the value what it is, and of that, what additions to it wait for.
        let (mut makers, mut awaited) = (Vec::new(), Vec::new());
        for id in sites.chain(root) {
            if let Some(maker) = sites.made(id) {
                makers.push(maker);
                if !order.adds(maker) {
                    awaited.push(maker);
                }
            }
            for &(reader, access) in sites.read(id) {
                match access {
                    Access::Row | Access::Neighbors => {
                        makers.iter().try_for_each(|&maker| order.made(id, maker, reader, access))?;
                    }
                    Access::Onto => awaited.iter().try_for_each(|&maker| order.added(id, maker, reader))?,
                }
                // Additions come in any order, so that any of them may be the first to come.
                let later = sites.chain(id).skip(1).filter_map(|next| Some((sites.made(next)?, next)));
                let mut later = later.filter(|(writer, _)| *writer != reader);
                if access != Access::Onto {
                    later.try_for_each(|writer| order.kept(id, reader, access, writer))?;
                }
            }
        }
        order.extent(root, rows)?;
    }
    Ok(())
}

fn roots<'a>(body: &Body, sites: &'a Sites) -> impl Iterator<Item = ValueId> + use<'a> {
    (0..body.values.len() as u32).map(ValueId).filter(|&id| sites.root(id) == id)
}

struct Order<'a> {
    body: &'a Body,
    sites: &'a Sites,
    reach: Option<Reach>,
}

impl Order<'_> {
    fn shift(&self, site: Site) -> i64 {
        i64::from(self.body.loops[site.one].stages[site.stage].shift)
    }

    fn reach(&self, id: ValueId) -> Result<Reach, String> {
        self.reach.ok_or_else(|| format!("how far rows of {} are reached is not known", name(self.body, id)))
    }

    fn reader(&self, site: Site) -> &'static str {
        op(self.body, site).op.name()
    }

    /// What `maker` makes, or changes, is there when `reader` reads it.
    fn made(&self, id: ValueId, maker: Site, reader: Site, access: Access) -> Result<(), String> {
        // Loops follow each other, and names do.
        if maker.one != reader.one {
            return Ok(());
        }
        let (value, by) = (name(self.body, id), self.reader(reader));
        if scatters(self.body, maker) {
            return Err(format!("{by} reads {value}, whose rows are complete only behind the loop that adds to them"));
        }
        let ahead = match access {
            Access::Row | Access::Onto => 0,
            Access::Neighbors if maker.same_stage(reader) => {
                return Err(format!("{by} reads rows of {value} around its own in the stage that makes them"));
            }
            Access::Neighbors => i64::from(self.reach(id)?.ahead),
        };
        let lag = self.shift(reader) - self.shift(maker);
        if lag >= ahead {
            return Ok(());
        }
        Err(match access {
            Access::Row | Access::Onto => format!("{by} reads a row of {value} {} block rows before it is made", -lag),
            Access::Neighbors => {
                format!("{by} is {lag} block rows behind {value}, and rows reach {ahead} block rows ahead")
            }
        })
    }

    /// Whether an operation adds to what is there: to other rows' or to zeros, which are there before the loop is.
    fn adds(&self, site: Site) -> bool {
        scatters(self.body, site) || op(self.body, site).op.reads().iter().any(|(_, access)| *access == Access::Onto)
    }

    /// What `adder` adds to is there: additions before it may come later, anything else may not.
    fn added(&self, id: ValueId, maker: Site, adder: Site) -> Result<(), String> {
        if maker.one != adder.one {
            return Ok(());
        }
        if scatters(self.body, adder) {
            let (value, by) = (name(self.body, id), self.reader(adder));
            return Err(format!("{by} adds to rows of {value} that are not made yet"));
        }
        self.made(id, maker, adder, Access::Row)
    }

    /// What `reader` reads is not overwritten before.
    fn kept(&self, id: ValueId, reader: Site, access: Access, (writer, next): (Site, ValueId)) -> Result<(), String> {
        if writer.one > reader.one {
            return Ok(());
        }
        let (value, by) = (name(self.body, id), self.reader(reader));
        let fault = || Err(format!("{by} reads {value} after {} is written in its place", name(self.body, next)));
        if writer.one < reader.one || scatters(self.body, writer) {
            return fault();
        }
        let behind = match access {
            Access::Row | Access::Onto => 0,
            Access::Neighbors => i64::from(self.reach(id)?.behind),
        };
        let until = self.shift(reader) + behind;
        let after = (writer.stage, writer.op) > (reader.stage, reader.op);
        let safe = self.shift(writer) > until || (self.shift(writer) == until && after);
        if safe { Ok(()) } else { fault() }
    }

    /// The place of a value is large enough for all that is done with it.
    fn extent(&self, root: ValueId, rows: usize) -> Result<(), String> {
        let value = self.body.value(root);
        let name = &value.name;
        let Some(first) = self.sites.made(root) else { return Ok(()) };
        let made = self.sites.chain(root).filter_map(|id| self.sites.made(id)).map(|site| (site, Access::Row));
        let mut uses = made.chain(self.sites.chain(root).flat_map(|id| self.sites.read(id).iter().copied()));
        match value.extent {
            Extent::Tensor(_) | Extent::All => return Ok(()),
            Extent::Keys if value.space != Space::Pairs => {
                return Err(format!("{name} is kept for some keys, and is no pairs"));
            }
            Extent::Keys if !self.body.loops[first.one].stages[first.stage].by_keys => {
                return Err(format!("{name} is kept for some keys by a stage that does not go by keys"));
            }
            Extent::Keys | Extent::Row => {
                if let Some((site, _)) = uses.find(|(site, _)| !site.same_stage(first)) {
                    let (by, kept) = (self.reader(site), value.extent);
                    return Err(format!("{name} keeps a {kept}, and {by} needs it in another stage"));
                }
            }
            Extent::Ring(kept) => {
                for (site, access) in uses {
                    let by = self.reader(site);
                    if site.one != first.one {
                        return Err(format!("{name} keeps a ring of {kept} rows, and {by} needs it in another loop"));
                    }
                    let behind = if access == Access::Neighbors { i64::from(self.reach(root)?.behind) } else { 0 };
                    let needed = (self.shift(site) - self.shift(first) + behind + 1).min(rows as i64);
                    if i64::from(kept) < needed {
                        return Err(format!("{name} keeps a ring of {kept} rows, and {by} needs {needed}"));
                    }
                }
            }
        }
        let scattered =
            self.sites.chain(root).filter_map(|id| self.sites.made(id)).any(|site| scatters(self.body, site));
        if scattered {
            return Err(format!("{name} is added to for all keys, and keeps only a {}", value.extent));
        }
        Ok(())
    }
}
