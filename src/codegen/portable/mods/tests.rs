//! Functions over their whole ranges, and panels with masks, gathered keys and inputs.

use core::ptr;

use cranelift_codegen::isa::OwnedTargetIsa;
use cranelift_jit::{JITBuilder, JITModule};
use cranelift_module::{FuncId, default_libcall_names};

use super::super::{ModSymbols, Options, define_mods_for, tile_isa};
use super::*;
use crate::plan::ModsBy;
use crate::spec::score::ScoreMods;

/// Lines of 16 floats, aligned as panels are.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub struct Line(pub [f32; LANES]);

/// The passes of some mods; the module is freed with them.
pub struct Passes {
    module: Option<JITModule>,
    pub symbols: ModSymbols,
}

impl Passes {
    fn new(mods: ScoreMods, fused: bool, native: bool) -> Self {
        mods.verify().unwrap();
        let plan = ModsPlan { mods, factor: 1.0, fused, by: ModsBy::Code };
        Self::with(native, |module, isa, options| define_mods_for(module, isa, &plan, options).unwrap())
    }

    /// The functions that `define` defines, for this CPU or the oldest of its kind.
    pub fn with(native: bool, define: impl FnOnce(&mut JITModule, OwnedTargetIsa, Options) -> ModSymbols) -> Self {
        let options = Options { verify: true, ..Options::default() };
        let isa = tile_isa(options, native).unwrap();
        let mut module = JITModule::new(JITBuilder::with_isa(isa.clone(), default_libcall_names()));
        let symbols = define(&mut module, isa, options);
        module.finalize_definitions().unwrap();
        Self { module: Some(module), symbols }
    }

    #[allow(unsafe_code)]
    pub fn call<Call>(&self, id: Option<FuncId>, call: &Call) {
        let code = self.module.as_ref().unwrap().get_finalized_function(id.unwrap());
        // SAFETY: the module is finalized and lives as long as `self`; a pass takes one pointer to its record in the
        // system's calling convention. The records in these tests point to buffers that live through the call.
        unsafe {
            let pass: unsafe extern "C" fn(*const Call) = core::mem::transmute(code);
            pass(call);
        }
    }
}

impl Drop for Passes {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        if let Some(module) = self.module.take() {
            // SAFETY: no function of the module is running, and no address of one outlives `self`.
            unsafe { module.free_memory() };
        }
    }
}

fn record(panel: &mut [Line]) -> ModCall {
    ModCall {
        s: panel.as_mut_ptr().cast(),
        s_stride: panel.len() * LANES,
        nkeys: panel.len(),
        groups: 1,
        words: ptr::null(),
        max: ptr::null_mut(),
        keys: ptr::null(),
        first_key: 0,
        key_step: 1,
        positions: [0; LANES].as_ptr(),
        head: 0,
        inputs: ptr::null(),
        constant: 0.0,
        factor: 1.0,
    }
}

/// How far `found` is from `wanted`, in units in the last place of `wanted` as a float.
fn ulps(found: f32, wanted: f64) -> f64 {
    let nearest = wanted as f32;
    if wanted.is_nan() || nearest.is_infinite() || !found.is_finite() {
        let same = found == nearest || (found.is_nan() && wanted.is_nan());
        return if same { 0.0 } else { f64::INFINITY };
    }
    let unit = f64::from(nearest.abs().next_up()) - f64::from(nearest.abs());
    (f64::from(found) - wanted).abs() / unit
}

/// Numbers of every magnitude and both signs, and the special ones.
fn everywhere() -> Vec<f32> {
    let mut all: Vec<f32> = (0..0x7f80_0000_u32).step_by(4099).map(f32::from_bits).collect();
    all.extend(all.clone().iter().map(|x| -x));
    // Where functions bend, and where their reductions change sides.
    all.extend((-200_000..200_000).map(|i| i as f32 * 0.000_6));
    let special = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MIN_POSITIVE, f32::MAX, f32::MIN];
    all.extend(special);
    all.extend([1.0, 88.722_8, 88.722_9, -87.4, -103.9, -104.1, f32::from_bits(1), f32::from_bits(0x7f80_0001)]);
    all
}

#[test]
fn functions_are_accurate_to_4_ulp_in_every_lane() {
    type Function = fn(f64) -> f64;
    let functions: [(&str, Function); 6] = [
        ("exp(s)", f64::exp),
        ("log(s)", f64::ln),
        ("tanh(s)", f64::tanh),
        ("sigmoid(s)", |x| 1.0 / (1.0 + (-x).exp())),
        ("sqrt(s)", f64::sqrt),
        ("abs(s)", f64::abs),
    ];
    let numbers = everywhere();
    for native in [true, false] {
        for (text, exact) in functions {
            let mods = format!("positions q_len 16 kv_len 16 heads 1 q_offset 0\nexpr {text}").parse().unwrap();
            let passes = Passes::new(mods, false, native);
            let line = |chunk: &[f32]| Line(core::array::from_fn(|i| chunk[i % chunk.len()]));
            let mut panel: Vec<Line> = numbers.chunks(LANES).map(line).collect();
            let before = panel.clone();
            passes.call(passes.symbols.panel, &record(&mut panel));
            let mut worst = (0.0, 0.0);
            for (found, x) in panel.iter().flat_map(|line| line.0).zip(before.iter().flat_map(|line| line.0)) {
                let error = ulps(found, exact(f64::from(x)));
                worst = if error > worst.0 { (error, x) } else { worst };
            }
            let (error, x) = worst;
            assert!(error <= 4.0, "{text} (native {native}) is {error} ulp wrong at {x:e} ({:#x})", x.to_bits());
        }
    }
}

#[test]
fn softcap_is_accurate_to_5_ulp() {
    let mods = "positions q_len 16 kv_len 16 heads 1 q_offset 0\nsoftcap 30.0".parse().unwrap();
    let passes = Passes::new(mods, false, true);
    let numbers = everywhere();
    let mut panel: Vec<Line> =
        numbers.chunks(LANES).map(|chunk| Line(core::array::from_fn(|i| chunk[i % chunk.len()]))).collect();
    let before = panel.clone();
    passes.call(passes.symbols.panel, &record(&mut panel));
    for (found, x) in panel.iter().flat_map(|line| line.0).zip(before.iter().flat_map(|line| line.0)) {
        // A quotient by 30 of subnormal numbers has few digits left.
        if x.abs() > 1e-36 || x == 0.0 || !x.is_finite() {
            let error = ulps(found, 30.0 * (f64::from(x) / 30.0).tanh());
            assert!(error <= 5.0, "{error} ulp at {x:e}");
        }
    }
}

#[test]
fn masked_lanes_stay_out_of_the_maximum_and_inputs_are_read_where_they_are() {
    let text = "positions q_len 40 kv_len 50 heads 3 q_offset 10\ninput rel [3, 99] line 1\n\
                bias rel[h, q - k + 49]\nexpr s + 1000 * rel[h, max(0, min(k - q // 3, 98))] - k";
    let rel: Vec<f32> = (0..3 * 99).map(|i| (i as f32 * 0.37).sin()).collect();
    let inputs = [rel.as_ptr()];
    // Positions that follow each other, that do not, and that repeat behind the last query.
    let orders: [fn(i32) -> i32; 3] = [|i| 10 + i, |i| 10 + i * 7 % 40, |i| 10 + i.min(5)];
    for (fused, order) in [false, true].into_iter().flat_map(|fused| orders.map(|order| (fused, order))) {
        let passes = Passes::new(text.parse().unwrap(), fused, true);
        for keys in [None, Some((0..20).map(|j| j * 13 % 50).collect::<Vec<u32>>())] {
            let positions: Vec<i32> = (0..2 * LANES as i32).map(order).collect();
            let mut panel = vec![Line([0.5; LANES]); 2 * 20];
            let words: Vec<u64> = (0..20).map(|j| if j % 3 == 0 { 0 } else { 0x1234_5678_9abc_def0 >> j }).collect();
            let mut max = [f32::NEG_INFINITY; 2 * LANES];
            let call = ModCall {
                s_stride: 20 * LANES,
                nkeys: 20,
                groups: 2,
                words: words.as_ptr(),
                max: max.as_mut_ptr(),
                keys: keys.as_ref().map_or(ptr::null(), |keys| keys.as_ptr()),
                first_key: 30,
                key_step: 1,
                positions: positions.as_ptr(),
                head: 2,
                inputs: inputs.as_ptr(),
                ..record(&mut panel)
            };
            passes.call(passes.symbols.panel, &call);
            for (lane, &q) in positions.iter().enumerate() {
                let mut wanted_max = f32::NEG_INFINITY;
                for (j, &word) in words.iter().enumerate() {
                    let k = keys.as_ref().map_or(30 + j as i32, |keys| keys[j] as i32);
                    let first = rel[2 * 99 + (q - k + 49) as usize];
                    let second = rel[2 * 99 + (k - q / 3).clamp(0, 98) as usize];
                    let wanted = 0.5 + first + 1000.0 * second - k as f32;
                    let allowed = word >> lane & 1 == 1;
                    let found = panel[lane / LANES * 20 + j].0[lane % LANES];
                    if allowed || !fused {
                        assert!((found - wanted).abs() < 1e-3, "{found} {wanted} at query {q}, key {k}");
                    }
                    if allowed {
                        wanted_max = wanted_max.max(found);
                    }
                }
                assert_eq!(max[lane], if fused { wanted_max } else { f32::NEG_INFINITY });
            }
        }
    }
}

#[test]
fn edges_have_keys_in_their_lanes() {
    let text = "positions q_len 8 kv_len 30 heads 2 q_offset 22\ninput rel [30, 30] line 1\n\
                alibi [0.5, 0.25]\nexpr s + rel[q, k] + h";
    let rel: Vec<f32> = (0..900).map(|i| (i as f32 * 0.37).sin()).collect();
    let slopes = [0.5_f32, 0.25];
    let inputs = [rel.as_ptr(), slopes.as_ptr()];
    let passes = Passes::new(text.parse().unwrap(), true, true);
    let counts = [0_u32, 1, 3, 4, 5, 0, 9, 2];
    // The block starts within the head's list.
    let mut offsets = vec![3];
    counts.iter().for_each(|count| offsets.push(offsets[offsets.len() - 1] + count));
    let keys: Vec<u32> = (0..27).map(|e| e * 11 % 30).collect();
    let mut s = vec![1.0_f32; 25];
    s[24] = 77.0;
    let mut max = [f32::NEG_INFINITY; 8];
    let positions: Vec<i32> = (22..30).collect();
    let call = EdgeModCall {
        s: s.as_mut_ptr(),
        rows: 8,
        offsets: offsets.as_ptr(),
        edge_keys: keys.as_ptr(),
        max: max.as_mut_ptr(),
        positions: positions.as_ptr(),
        head: 1,
        inputs: inputs.as_ptr(),
    };
    passes.call(passes.symbols.edges, &call);
    for row in 0..8 {
        let edges = offsets[row] as usize - 3..offsets[row + 1] as usize - 3;
        let mut most = f32::NEG_INFINITY;
        for e in edges {
            let (q, k) = (22 + row, keys[3 + e] as usize);
            let wanted = 1.0 + 0.25 * (k as f32 - q as f32) + rel[30 * q + k] + 1.0;
            assert!((s[e] - wanted).abs() < 1e-5, "{} {wanted}", s[e]);
            most = most.max(s[e]);
        }
        assert_eq!(max[row], most);
    }
    assert_eq!(s[24], 77.0);
}
