//! Which instruction sets this machine has, and which tile family a kernel is made for.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// The tile families, slowest first. A line names the family, the floats in its vectors, the architecture, its macro that
/// asks the CPU, and every feature that tiles of the family are compiled with, those too that others imply.
macro_rules! families {
    ($($(#[$doc:meta])* $isa:ident $name:literal $lanes:literal
        $(on $arch:literal $detected:ident [$($feature:tt)*])?;)*) => {
        /// A tile family: who computes the 64-query blocks.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
        #[serde(rename_all = "lowercase")]
        pub enum Isa {
            $($(#[$doc])* $isa,)*
        }

        impl Isa {
            /// Every family, slowest first.
            pub const ALL: [Self; [$($lanes),*].len()] = [$(Self::$isa),*];

            /// Name on the command line and in every text form.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$isa => $name,)*
                }
            }

            /// Floats in a vector.
            pub const fn lanes(self) -> usize {
                match self {
                    $(Self::$isa => $lanes,)*
                }
            }

            /// Every feature that the family's tiles are compiled with.
            pub const fn features(self) -> &'static [&'static str] {
                match self {
                    $(Self::$isa => &[$($($feature),*)?],)*
                }
            }

            /// Whether this machine can run the family: it has every one of [`Self::features`].
            pub fn available(self) -> bool {
                match self {
                    $(Self::$isa => true $(&& std::cfg_select! {
                        target_arch = $arch => { true $(&& std::arch::$detected!($feature))* }
                        _ => { false }
                    })?,)*
                }
            }
        }
    };
}

families! {
    /// Everything in Cranelift IR, with its 128-bit vectors: any machine that Cranelift knows.
    Portable "portable" 4;
    /// `std::arch` tiles for AVX2 with FMA and F16C.
    Avx2 "avx2" 8 on "x86_64" is_x86_feature_detected["avx2" "fma" "f16c"];
    /// `std::arch` tiles for AVX-512 F, VL, DQ and BW.
    Avx512 "avx512" 16 on "x86_64" is_x86_feature_detected[
        "avx2" "fma" "f16c" "avx512f" "avx512vl" "avx512dq" "avx512bw"
    ];
}

impl Isa {
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
