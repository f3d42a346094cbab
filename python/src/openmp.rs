//! The OpenMP team of torch: threads that wait for torch's next operation, and would hold up any others until then.
//!
//! Nothing is loaded or linked for it. Torch has an OpenMP runtime in the process; its entry point is looked up there and
//! called as code is that a compiler made of `#pragma omp parallel`.
#![allow(unsafe_code)]

use std::any::Any;
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// What GCC calls: `fn(data)` on every thread of a team.
type GompParallel = unsafe extern "C" fn(extern "C" fn(*mut c_void), *mut c_void, c_uint, c_uint);
/// What Clang and Intel's compilers call: `fn(thread, team's thread, data)` on every thread of a team.
type KmpForkCall = unsafe extern "C" fn(*const Place, c_int, extern "C" fn(*mut c_int, *mut c_int, *mut c_void), ...);
type KmpThread = unsafe extern "C" fn(*const Place) -> c_int;
type KmpPushThreads = unsafe extern "C" fn(*const Place, c_int, c_int);

/// Where in a program a region stands, as compilers tell LLVM's runtime (`ident_t` in its `kmp.h`).
#[repr(C)]
struct Place {
    reserved_1: c_int,
    flags: c_int,
    reserved_2: c_int,
    reserved_3: c_int,
    source: *const c_char,
}

/// A place with an address that never changes.
struct Fixed(Place);

// SAFETY: nothing writes it, and the text that it points to is a constant.
unsafe impl Sync for Fixed {}

/// `flags` says that a compiler of this interface made it.
static HERE: Fixed =
    Fixed(Place { reserved_1: 0, flags: 2, reserved_2: 0, reserved_3: 0, source: c";unknown;unknown;0;0;;".as_ptr() });

#[derive(Debug, Clone, Copy)]
enum Entry {
    Gomp(GompParallel),
    Kmp { fork: KmpForkCall, thread: KmpThread, push_threads: KmpPushThreads },
}

/// The teams that a runtime makes: one for every thread that asks, kept for its next region.
#[derive(Debug)]
pub struct Teams {
    entry: Entry,
    /// The file that the runtime was loaded from.
    pub library: String,
}

/// What the threads of a team share.
struct Shared<'a> {
    work: &'a (dyn Fn() + Sync),
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// Calls the work of a region; a panic must not leave a function that C calls.
extern "C" fn enter(shared: *mut c_void) {
    // SAFETY: it is the `Shared` of `Teams::run`, which waits for the end of the region.
    let shared = unsafe { &*shared.cast::<Shared<'_>>() };
    if let Err(panic) = catch_unwind(AssertUnwindSafe(shared.work)) {
        *shared.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
    }
}

extern "C" fn enter_kmp(_: *mut c_int, _: *mut c_int, shared: *mut c_void) {
    enter(shared);
}

impl Teams {
    /// Those of the runtime that `torch`, the path of a loaded library, calls by `entry`: `GOMP_parallel` or
    /// `__kmpc_fork_call`. `None` where there is no such library or entry.
    pub fn of(torch: &Path, entry: &str) -> Option<Self> {
        let scopes = Scopes::of(torch)?;
        let address = scopes.find(entry)?;
        let entry = match entry {
            // SAFETY: an OpenMP runtime is what exports functions of these names, and they have had these types since GCC
            // 4.9 (libgomp's `libgomp_g.h`) and LLVM 3.5 (`kmp.h`).
            "GOMP_parallel" => Entry::Gomp(unsafe { std::mem::transmute::<*mut c_void, GompParallel>(address) }),
            "__kmpc_fork_call" => {
                let [thread, push_threads] =
                    [scopes.find("__kmpc_global_thread_num")?, scopes.find("__kmpc_push_num_threads")?];
                // SAFETY: as above.
                unsafe {
                    Entry::Kmp {
                        fork: std::mem::transmute::<*mut c_void, KmpForkCall>(address),
                        thread: std::mem::transmute::<*mut c_void, KmpThread>(thread),
                        push_threads: std::mem::transmute::<*mut c_void, KmpPushThreads>(push_threads),
                    }
                }
            }
            _ => return None,
        };
        Some(Self { entry, library: library_of(address) })
    }

    /// Calls `work` on a team of `threads`, the calling one among them, and waits for all. Within a region of OpenMP's the
    /// runtime makes a team of the calling thread alone.
    pub fn run(&self, threads: usize, work: &(dyn Fn() + Sync)) {
        let shared = Shared { work, panic: Mutex::new(None) };
        let data = (&raw const shared).cast_mut().cast::<c_void>();
        let threads = c_int::try_from(threads).unwrap_or(c_int::MAX);
        match self.entry {
            // SAFETY: the region ends before `shared` does, whose work may be called from any thread; `enter` lets no panic
            // out. The runtime is never unloaded, since `Scopes` has opened what depends on it and does not close it.
            Entry::Gomp(parallel) => unsafe { parallel(enter, data, threads.unsigned_abs(), 0) },
            // SAFETY: as above; the number of threads is for the region that follows on this thread.
            Entry::Kmp { fork, thread, push_threads } => unsafe {
                push_threads(&raw const HERE.0, thread(&raw const HERE.0), threads);
                fork(&raw const HERE.0, 1, enter_kmp, data);
            },
        }
        if let Some(panic) = shared.panic.into_inner().unwrap_or_else(PoisonError::into_inner) {
            resume_unwind(panic);
        }
    }
}

/// Where a library's calls lead.
struct Scopes(*mut c_void);

impl Scopes {
    /// Those of a library that is loaded already.
    fn of(library: &Path) -> Option<Self> {
        let path = CString::new(library.as_os_str().as_encoded_bytes()).ok()?;
        // SAFETY: the path is a string of C's; a library that is not loaded stays so, and none runs anything new.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD) };
        (!handle.is_null()).then_some(Self(handle))
    }

    /// The function that the library calls by a name.
    fn find(&self, name: &str) -> Option<*mut c_void> {
        let name = CString::new(name).ok()?;
        // On Linux the scope of the whole process comes first, as for the library's own calls: a runtime may have been
        // preloaded. Elsewhere a library names those that it calls.
        let scopes: &[*mut c_void] = if cfg!(target_os = "linux") { &[libc::RTLD_DEFAULT, self.0] } else { &[self.0] };
        // SAFETY: handles are the default or open, and the name is a string of C's.
        scopes.iter().map(|&scope| unsafe { libc::dlsym(scope, name.as_ptr()) }).find(|address| !address.is_null())
    }
}

/// The file that has an address.
fn library_of(address: *const c_void) -> String {
    // SAFETY: a struct of C's that is zeros before it is written.
    let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: the address is one of a loaded library, and `info` is written to alone.
    let found = unsafe { libc::dladdr(address, &raw mut info) };
    if found == 0 || info.dli_fname.is_null() {
        return "an OpenMP runtime".to_owned();
    }
    // SAFETY: a path that lives as long as the library.
    unsafe { CStr::from_ptr(info.dli_fname) }.to_string_lossy().into_owned()
}
