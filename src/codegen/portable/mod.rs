//! The portable tile family: the same micro-kernels as [`crate::tiles`], emitted as Cranelift IR with 128-bit
//! vectors.
//!
//! In: the widths of keys and values, which are constants of the code. Out: functions in a [`JITModule`] that
//! take one pointer to the call records of [`crate::tiles`]; a record's own `d` and `dv` are not read. Refused:
//! a width of 0, and big-endian machines.
//!
//! The tiles are compiled for the same CPU as the module, but with an ISA of their own at `opt_level=none`: the
//! mid-end reorders long chains of fused multiply-adds until they spill, which cost a prototype a third to a half
//! of its speed. Bytes and relocations are then handed to the module.

mod edges;
mod exp;
mod mods;
mod pack;
mod score;
#[cfg(test)]
mod tests;
mod value;

use cranelift_codegen::Context;
use cranelift_codegen::control::ControlPlane;
use cranelift_codegen::ir::{Endianness, Function, Signature, Type, UserFuncName, Value, types};
use cranelift_codegen::isa::OwnedTargetIsa;
use cranelift_codegen::settings::{self, Configurable};
use cranelift_frontend::FunctionBuilderContext;
use cranelift_jit::JITModule;
use cranelift_module::{FuncId, Linkage, Module, ModuleReloc};

use crate::codegen::emit::{self, Emit};
use crate::error::{Error, Result};
use crate::limits::Allowance;
use crate::plan::{ModsBy, ModsPlan};
use crate::spec::score::ScoreMods;

/// Reads a pointer-sized field of a call record.
macro_rules! field {
    ($e:expr, $record:expr, $call:ty, $name:ident) => {
        $e.field($record, core::mem::offset_of!($call, $name))
    };
}
use field;

/// What the tiles are specialised for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shapes {
    /// Width of queries and keys, at least 1.
    pub d: usize,
    /// Width of values, at least 1.
    pub dv: usize,
}

/// How the tiles are compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Run Cranelift's verifier over every function.
    pub verify: bool,
    /// Emit the tiles for scattered edges: about a fifth of the time to compile, wasted where a pattern has none.
    pub edges: bool,
    /// What the names of the functions begin with.
    pub prefix: &'static str,
    /// How much code there may be, and until when.
    pub allowance: Allowance,
}

impl Default for Options {
    /// All tiles; the verifier is on where debug assertions are.
    fn default() -> Self {
        Self { verify: cfg!(debug_assertions), edges: true, prefix: "portable", allowance: u64::MAX.into() }
    }
}

/// The tiles in the module, each `extern "C" fn(*const Call)`; `value` returns an `i64`.
#[derive(Debug, Clone, Copy)]
pub struct Symbols {
    /// [`PackCall`](crate::tiles::PackCall).
    pub pack: FuncId,
    /// [`ScoreCall`](crate::tiles::ScoreCall).
    pub score: FuncId,
    /// [`ExpCall`](crate::tiles::ExpCall).
    pub exp: FuncId,
    /// [`ValueCall`](crate::tiles::ValueCall); returns 1 when a value written to `out` is not finite, else 0.
    pub value: FuncId,
    /// The tiles for scattered edges, where [`Options::edges`] asked for them.
    pub edges: Option<EdgeSymbols>,
}

/// The tiles for scattered edges, each taking an [`EdgeCall`](crate::tiles::EdgeCall).
#[derive(Debug, Clone, Copy)]
pub struct EdgeSymbols {
    /// Scores and their maxima.
    pub score: FuncId,
    /// Probabilities and their sums.
    pub exp: FuncId,
    /// Sums of values.
    pub value: FuncId,
}

/// Emits the tiles for `shapes` and defines them in `module`.
///
/// # Errors
/// [`Error::Unsupported`] for a width of 0, a big-endian host or one that Cranelift does not know, [`Error::Internal`] with the
/// IR where Cranelift refuses a function.
pub fn define(module: &mut JITModule, shapes: Shapes, options: Options) -> Result<Symbols> {
    define_for(module, tile_isa(options, true)?, shapes, options)
}

/// The functions that apply score mods.
#[derive(Debug, Clone, Copy)]
pub struct ModSymbols {
    /// [`ModCall`](crate::tiles::ModCall), where code does it.
    pub panel: Option<FuncId>,
    /// [`EdgeModCall`](crate::tiles::EdgeModCall), where there are scattered edges.
    pub edges: Option<FuncId>,
}

/// Emits the passes that apply score mods and defines them in `module`.
///
/// # Errors
/// As [`define`].
pub fn define_mods(module: &mut JITModule, mods: &ModsPlan, options: Options) -> Result<ModSymbols> {
    define_mods_for(module, tile_isa(options, true)?, mods, options)
}

fn define_mods_for(
    module: &mut JITModule,
    isa: OwnedTargetIsa,
    mods: &ModsPlan,
    options: Options,
) -> Result<ModSymbols> {
    let mut compiler = Compiler::new(module, isa, options);
    let record = [compiler.pointer()];
    let mut symbols = ModSymbols { panel: None, edges: None };
    if mods.by == ModsBy::Code {
        symbols.panel = Some(compiler.add("mods", &record, &[], |e, p, _| mods::emit(e, p[0], mods))?);
    }
    if options.edges {
        symbols.edges = Some(compiler.add("edge_mods", &record, &[], |e, p, _| mods::emit_edges(e, p[0], mods))?);
    }
    Ok(symbols)
}

/// Emits the passes that go back through score mods and defines them in `module`: `panel` takes a
/// [`ModGradientCall`](crate::tiles::mod_gradients::ModGradientCall), `edges`, where asked for, an
/// [`EdgeModGradientCall`](crate::tiles::mod_gradients::EdgeModGradientCall).
///
/// # Errors
/// As [`define`].
pub fn define_mod_gradients(module: &mut JITModule, mods: &ScoreMods, options: Options) -> Result<ModSymbols> {
    define_mod_gradients_for(module, tile_isa(options, true)?, mods, options)
}

fn define_mod_gradients_for(
    module: &mut JITModule,
    isa: OwnedTargetIsa,
    mods: &ScoreMods,
    options: Options,
) -> Result<ModSymbols> {
    let mut compiler = Compiler::new(module, isa, options);
    let record = [compiler.pointer()];
    let panel = compiler.add("mod_gradients", &record, &[], |e, p, _| mods::gradient::emit(e, p[0], mods))?;
    let mut symbols = ModSymbols { panel: Some(panel), edges: None };
    if options.edges {
        let emit = |e: &mut Emit, p: &[Value], _: &mut JITModule| mods::gradient::emit_edges(e, p[0], mods);
        symbols.edges = Some(compiler.add("edge_mod_gradients", &record, &[], emit)?);
    }
    Ok(symbols)
}

fn define_for(module: &mut JITModule, isa: OwnedTargetIsa, shapes: Shapes, options: Options) -> Result<Symbols> {
    if shapes.d == 0 || shapes.dv == 0 {
        return Err(Error::unsupported(format!("tiles of shape {shapes:?}"), "widths from 1 are supported"));
    }
    let mut compiler = Compiler::new(module, isa, options);
    if compiler.isa.endianness() != Endianness::Little {
        return Err(Error::unsupported("portable tiles on a big-endian machine", "mask words are read in parts"));
    }
    let pointer = compiler.pointer();
    let record = [pointer];
    let mut edges = None;
    if options.edges {
        edges = Some(EdgeSymbols {
            score: compiler.add("edge_score", &record, &[], |e, p, _| edges::emit_score(e, p[0], shapes.d))?,
            exp: compiler.add("edge_exp", &record, &[], |e, p, _| edges::emit_exp(e, p[0]))?,
            value: compiler.add("edge_value", &record, &[], |e, p, _| edges::emit_value(e, p[0], shapes.dv))?,
        });
    }
    Ok(Symbols {
        pack: compiler.add("pack", &record, &[], |e, p, _| pack::emit(e, p[0], shapes.d))?,
        score: compiler.add("score", &record, &[], |e, p, _| score::emit(e, p[0], shapes.d))?,
        exp: compiler.add("exp", &record, &[], |e, p, _| exp::emit(e, p[0]))?,
        value: value::define(&mut compiler, shapes.dv)?,
        edges,
    })
}

/// Compiles functions at `opt_level=none` into a module.
struct Compiler<'m> {
    module: &'m mut JITModule,
    isa: OwnedTargetIsa,
    context: Context,
    builder: FunctionBuilderContext,
    options: Options,
    /// Bytes of all functions so far.
    bytes: u64,
}

impl<'m> Compiler<'m> {
    fn new(module: &'m mut JITModule, isa: OwnedTargetIsa, options: Options) -> Self {
        let builder = FunctionBuilderContext::new();
        Self { module, isa, context: Context::new(), builder, options, bytes: 0 }
    }

    fn pointer(&self) -> Type {
        self.isa.pointer_type()
    }

    fn signature(&self, params: &[Type], returns: &[Type]) -> Signature {
        emit::signature(self.module.isa().default_call_conv(), params, returns)
    }

    /// Emits and defines `{prefix}_{name}`; `write` is given the parameters and the module, for calls, and returns
    /// what the function returns.
    fn add(
        &mut self,
        name: &str,
        params: &[Type],
        returns: &[Type],
        write: impl FnOnce(&mut Emit, &[Value], &mut JITModule) -> Vec<Value>,
    ) -> Result<FuncId> {
        let signature = self.signature(params, returns);
        let id = self
            .module
            .declare_function(&format!("{}_{name}", self.options.prefix), Linkage::Local, &signature)
            .map_err(|error| Error::internal("codegen", error.to_string(), name))?;
        let isa = &self.isa;
        self.context.clear();
        self.context.func = Function::with_name_signature(UserFuncName::user(0, id.as_u32()), signature);
        let (mut e, values) = Emit::new(&mut self.context.func, &mut self.builder, &**isa);
        let results = write(&mut e, &values, self.module);
        e.finish(&results);
        if let Err(error) = self.context.compile(&**isa, &mut ControlPlane::default()) {
            let message = format!("{name}: {:?}", error.inner);
            return Err(Error::internal("codegen", message, self.context.func.display()));
        }
        let Some(code) = self.context.compiled_code() else {
            return Err(Error::internal("codegen", format!("{name}: no code"), self.context.func.display()));
        };
        self.bytes += code.code_buffer().len() as u64;
        self.options.allowance.check_code(self.bytes)?;
        let relocations: Vec<ModuleReloc> = code
            .buffer
            .relocs()
            .iter()
            .map(|relocation| ModuleReloc::from_mach_reloc(relocation, &self.context.func, id))
            .collect();
        let alignment = u64::from(code.buffer.alignment).max(u64::from(isa.function_alignment().preferred));
        self.module
            .define_function_bytes(id, alignment, code.code_buffer(), &relocations)
            .map_err(|error| Error::internal("codegen", format!("{name}: {error}"), self.context.func.display()))?;
        Ok(id)
    }
}

/// The ISA of this CPU for tiles (with `native` unset: of the oldest CPU of its kind), without the mid-end. The register allocator is the default one: in every tile
/// the single-pass allocator saved no measurable compile time and made the loops two to four times slower.
fn tile_isa(options: Options, native: bool) -> Result<OwnedTargetIsa> {
    let refuse = |reason: String| Error::unsupported("code generation on this machine", reason);
    let mut flags = settings::builder();
    let verify = if options.verify { "true" } else { "false" };
    for (name, value) in [
        ("opt_level", "none"),
        ("is_pic", "false"),
        ("use_colocated_libcalls", "false"),
        ("enable_verifier", verify),
        ("enable_probestack", "false"),
    ] {
        flags.set(name, value).map_err(|error| refuse(error.to_string()))?;
    }
    cranelift_native::builder_with_options(native)
        .map_err(|reason| refuse(reason.to_owned()))?
        .finish(settings::Flags::new(flags))
        .map_err(|error| refuse(error.to_string()))
}

/// An all-ones or all-zeros vector, by whether the integer `condition` is 0 (all zeros) or 1.
fn condition_mask(e: &mut Emit, condition: Value) -> Value {
    use cranelift_codegen::ir::InstBuilder;
    let narrow = e.b.ins().ireduce(types::I32, condition);
    let negative = e.b.ins().ineg(narrow);
    let wide = e.b.ins().splat(types::I32X4, negative);
    e.as_f32(wide)
}
