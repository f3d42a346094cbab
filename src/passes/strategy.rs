//! Recipes: lists of nest passes with a name, by which a user may ask for them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{
    NestPass, batch_edges, cut_into_stretches, fuse_gradient_of_hop, fuse_gradient_of_scores, fuse_gradients,
    fuse_hop_into_softmax, fuse_hops_at_reach, fuse_rows_behind_hop, fuse_softmax, recompute_hops, rematerialise_p,
    shorten_buffers, split_gradient_by_hops, store_p_in_bf16, take_weights_left, walk_by_keys,
};
use crate::error::Error;
use crate::program::{Loop, Program};

/// A way to nest the operations of a program.
#[derive(Debug)]
pub struct Recipe {
    /// Its name.
    pub name: &'static str,
    /// What it does, in a sentence; said of it where no pass has more to say.
    pub about: &'static str,
    /// Whether it is one of gradients.
    pub training: bool,
    /// Whether it takes masks in parts.
    pub parts: bool,
    /// What is done, in order.
    pub passes: &'static [NestPass],
}

/// Every recipe: those of a forward call, then those of a gradient.
pub const RECIPES: &[Recipe] = &[
    Recipe {
        name: "flash",
        about: "the only hop needs no P after its block row",
        training: false,
        parts: true,
        passes: &[
            fuse_softmax::PASS,
            fuse_rows_behind_hop::PASS,
            fuse_hop_into_softmax::PASS,
            walk_by_keys::PASS,
            shorten_buffers::PASS,
            batch_edges::PASS,
        ],
    },
    Recipe {
        name: "resident",
        about: "P is stored once and read by every hop",
        training: false,
        parts: false,
        passes: &[fuse_softmax::PASS, fuse_rows_behind_hop::PASS, shorten_buffers::PASS, store_p_in_bf16::PASS],
    },
    Recipe {
        name: "recompute",
        about: "P is computed again from q, k and the row statistics in every hop",
        training: false,
        parts: false,
        passes: &[
            fuse_softmax::PASS,
            fuse_rows_behind_hop::PASS,
            rematerialise_p::EVERYWHERE,
            fuse_hop_into_softmax::REST,
            walk_by_keys::REST,
            shorten_buffers::PASS,
        ],
    },
    Recipe {
        name: "wavefront",
        about: "block rows in order, every hop some rows behind the one before",
        training: false,
        parts: false,
        passes: &[
            fuse_softmax::PASS,
            fuse_rows_behind_hop::PASS,
            fuse_hops_at_reach::PASS,
            shorten_buffers::PASS,
            store_p_in_bf16::PASS,
            cut_into_stretches::PASS,
        ],
    },
    Recipe {
        name: "triangular",
        about: "block rows in order, all hops of a row at once",
        training: false,
        parts: false,
        passes: &[
            fuse_softmax::PASS,
            fuse_rows_behind_hop::PASS,
            fuse_hops_at_reach::AT_ONCE,
            shorten_buffers::PASS,
            store_p_in_bf16::PASS,
            cut_into_stretches::PASS,
        ],
    },
    Recipe {
        name: "stored",
        about: "P is stored for all hops and their gradients, and computed again for that of the scores",
        training: true,
        parts: false,
        passes: &[
            fuse_softmax::PASS,
            fuse_rows_behind_hop::PASS,
            fuse_gradient_of_hop::PASS,
            fuse_gradient_of_scores::PASS,
            rematerialise_p::IN_GRADIENT,
            walk_by_keys::REST,
            shorten_buffers::PASS,
        ],
    },
    Recipe {
        name: "again",
        about: "P is computed again in every hop, forward and backward",
        training: true,
        parts: false,
        passes: &[
            fuse_softmax::PASS,
            fuse_rows_behind_hop::PASS,
            fuse_gradient_of_hop::PASS,
            fuse_gradient_of_scores::PASS,
            fuse_gradients::PASS,
            rematerialise_p::EVERYWHERE,
            take_weights_left::PASS,
            fuse_hop_into_softmax::REST,
            walk_by_keys::REST,
            shorten_buffers::PASS,
        ],
    },
    Recipe {
        name: "frugal",
        about: "P is computed again in every hop, and what the hops gave for the gradient of each",
        training: true,
        parts: false,
        passes: &[
            split_gradient_by_hops::PASS,
            fuse_softmax::PASS,
            fuse_rows_behind_hop::PASS,
            fuse_gradient_of_hop::PASS,
            fuse_gradient_of_scores::PASS,
            fuse_gradients::PASS,
            recompute_hops::PASS,
            rematerialise_p::EVERYWHERE,
            take_weights_left::PASS,
            fuse_hop_into_softmax::REST,
            walk_by_keys::REST,
            shorten_buffers::PASS,
        ],
    },
];

/// The name of a recipe.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Strategy(u8);

impl Strategy {
    /// One hop, online softmax, P never leaves the panel of its block row.
    pub const FLASH: Self = Self(0);
    /// P is stored once per head, then read by one product a hop.
    pub const RESIDENT: Self = Self(1);
    /// P is computed again in every hop, from the row statistics of the first.
    pub const RECOMPUTE: Self = Self(2);
    /// Block rows in order, every hop some rows behind the one before: P waits in a ring of rows until its last hop.
    pub const WAVEFRONT: Self = Self(3);
    /// Block rows in order, all hops of a row at once: P is that of one row.
    pub const TRIANGULAR: Self = Self(4);
    /// Gradients: P is stored for the hops and their gradients.
    pub const STORED: Self = Self(5);
    /// Gradients: P is computed again wherever it is read.
    pub const AGAIN: Self = Self(6);
    /// Gradients: what hops gave is computed again, too.
    pub const FRUGAL: Self = Self(7);

    /// Every recipe of a forward call.
    pub const ALL: &'static [Self] = &[Self::FLASH, Self::RESIDENT, Self::RECOMPUTE, Self::WAVEFRONT, Self::TRIANGULAR];
    /// Every recipe of a gradient.
    pub const TRAINING: &'static [Self] = &[Self::STORED, Self::AGAIN, Self::FRUGAL];

    /// What it stands for.
    pub fn recipe(self) -> &'static Recipe {
        &RECIPES[usize::from(self.0)]
    }

    /// Name on the command line and in every text form.
    pub fn name(self) -> &'static str {
        self.recipe().name
    }

    /// Whether block rows are swept in order, all hops in one go.
    pub fn sweeps(self) -> bool {
        self.recipe().passes.iter().any(|pass| pass.by_reach)
    }

    /// Whether P may be kept between a row's softmax and its hops.
    pub fn stores_p(self) -> bool {
        self.recipe().passes.iter().any(|pass| pass.name == store_p_in_bf16::PASS.name)
    }
}

impl Recipe {
    /// Whether it is one for this program at all.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn serves(&self, program: &Program) -> Result<(), String> {
        match (self.training, program.body.is_training()) {
            (false, true) => return Err("gradients are computed hop by hop".to_owned()),
            (true, false) => return Err("there is no gradient to compute".to_owned()),
            _ => {}
        }
        let apart = |one: &Loop| {
            let [stage] = one.stages.as_slice() else { return false };
            stage.ops.len() == 1 && stage.shift == 0 && !stage.by_keys && one.edge_rows == 1 && !one.halo
        };
        if !program.body.loops.iter().all(apart) {
            return Err("its operations stand in a nest already".to_owned());
        }
        if program.neighbors.parts > 1 && !self.parts {
            return Err("not with a mask in parts; asked for, it has the mask built whole".to_owned());
        }
        Ok(())
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Strategy {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        let every = Self::ALL.iter().chain(Self::TRAINING);
        every.copied().find(|strategy| strategy.name() == name).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|strategy| strategy.name()).collect();
            Error::unsupported(format!("strategy `{name}`"), format!("the strategies are {}", names.join(", ")))
        })
    }
}

impl From<Strategy> for String {
    fn from(strategy: Strategy) -> Self {
        strategy.name().to_owned()
    }
}

impl TryFrom<String> for Strategy {
    type Error = Error;

    fn try_from(name: String) -> Result<Self, Error> {
        name.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stand_for_their_recipes() {
        let every: Vec<Strategy> = Strategy::ALL.iter().chain(Strategy::TRAINING).copied().collect();
        assert_eq!(every.len(), RECIPES.len());
        for (i, strategy) in every.into_iter().enumerate() {
            assert_eq!(usize::from(strategy.0), i);
            assert_eq!(strategy.recipe().training, Strategy::TRAINING.contains(&strategy));
            assert_eq!(strategy.name().parse::<Strategy>().unwrap(), strategy);
            let json = serde_json::to_string(&strategy).unwrap();
            assert_eq!(json, format!("\"{strategy}\""));
            assert_eq!(serde_json::from_str::<Strategy>(&json).unwrap(), strategy);
        }
        let constants =
            [Strategy::FLASH, Strategy::RESIDENT, Strategy::RECOMPUTE, Strategy::WAVEFRONT, Strategy::TRIANGULAR];
        assert_eq!(constants.map(Strategy::name), ["flash", "resident", "recompute", "wavefront", "triangular"]);
        let constants = [Strategy::STORED, Strategy::AGAIN, Strategy::FRUGAL];
        assert_eq!(constants.map(Strategy::name), ["stored", "again", "frugal"]);
    }
}
