//! Which instruction sets this machine has, and which tile family a kernel is made for.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// A tile family: who computes the 64-query blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isa {
    /// Everything in Cranelift IR, with its 128-bit vectors: any machine that Cranelift knows.
    Portable,
    /// `std::arch` tiles for AVX2 with FMA and F16C.
    Avx2,
    /// `std::arch` tiles for AVX-512 F, VL, DQ and BW.
    Avx512,
}

/// CPU features, and whether this CPU has all of them: both from one list.
struct Features {
    names: &'static [&'static str],
    detected: fn() -> bool,
}

#[cfg(target_arch = "x86_64")]
macro_rules! features {
    ($($name:tt)*) => {
        Features { names: &[$($name),*], detected: || true $(&& is_x86_feature_detected!($name))* }
    };
}

impl Isa {
    /// Every family, slowest first.
    pub const ALL: [Self; 3] = [Self::Portable, Self::Avx2, Self::Avx512];

    /// Name on the command line and in every text form.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
    }

    /// All features that the family's tiles are compiled with, those too that others imply.
    pub fn features(self) -> &'static [&'static str] {
        self.list().names
    }

    /// Whether this machine can run the family: it has every one of [`Self::features`].
    pub fn available(self) -> bool {
        (self.list().detected)()
    }

    fn list(self) -> Features {
        match self {
            Self::Portable => Features { names: &[], detected: || true },
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => features!("avx2" "fma" "f16c"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => features!("avx2" "fma" "f16c" "avx512f" "avx512vl" "avx512dq" "avx512bw"),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 | Self::Avx512 => Features { names: &[], detected: || false },
        }
    }

    /// The fastest family that this machine can run.
    pub fn best() -> Self {
        Self::ALL.into_iter().rev().find(|isa| isa.available()).unwrap_or(Self::Portable)
    }

    /// Reads `auto` or a family's name, and refuses one that this machine cannot run.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for an unknown name, for `neon` (planned) and for a family that the CPU lacks.
    pub fn choose(name: &str) -> Result<Self> {
        if name == "auto" {
            return Ok(Self::best());
        }
        let isa: Self = name.parse()?;
        if isa.available() {
            return Ok(isa);
        }
        Err(Error::unsupported(format!("tile family `{isa}`"), format!("this CPU runs {}", list(Self::available))))
    }
}

fn list(keep: impl Fn(Isa) -> bool) -> String {
    let names: Vec<&str> = Isa::ALL.into_iter().filter(|&isa| keep(isa)).map(Isa::name).collect();
    names.join(", ")
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Isa {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|isa| isa.name() == name).ok_or_else(|| {
            Error::unsupported(format!("tile family `{name}`"), format!("known are auto, {}", list(|_| true)))
        })
    }
}
