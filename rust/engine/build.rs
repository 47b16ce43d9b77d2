//! Compiles the kernels for NVIDIA's cards with NVRTC, which needs neither a card nor a toolkit.

fn main() {
    println!("cargo:rustc-check-cfg=cfg(cuda)");
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(feature = "cuda")]
    nvrtc::main();
}

#[cfg(feature = "cuda")]
mod nvrtc {
    use std::ffi::{CStr, CString, c_char, c_int, c_void};
    use std::path::{Path, PathBuf};
    use std::process::Command;
    use std::ptr::null_mut;

    use libloading::{Library, Symbol};

    /// Names the library where it is not that of the Python package.
    const LIBRARY: &str = "NVRTC_LIBRARY";

    /// Text for a compute capability, which drivers compile for their card. Only what has bf16 needs
    /// more than Turing.
    const TARGETS: [(&str, &str); 2] = [("compute_75", "turing.ptx"), ("compute_80", "ampere.ptx")];

    const KERNELS: &str = "kernels";
    const ALL: &str = "all.cu";

    pub(super) fn main() {
        println!("cargo:rerun-if-changed={KERNELS}");
        println!("cargo:rerun-if-env-changed={LIBRARY}");
        let variable = |name| std::env::var(name).unwrap_or_default();
        let named = std::env::var_os(LIBRARY).map(PathBuf::from);
        // Elsewhere the feature adds nothing: NVIDIA has no driver, or nobody has tried its package
        // of NVRTC there, unless somebody names one.
        let target = (variable("CARGO_CFG_TARGET_OS"), variable("CARGO_CFG_TARGET_ARCH"));
        match (target.0.as_str(), target.1.as_str()) {
            ("linux", "x86_64") => {}
            ("linux" | "windows", _) if named.is_some() => {}
            _ => return,
        }
        let path = named.unwrap_or_else(installed);
        // SAFETY: NVIDIA's compiler, loaded for what it is.
        let library = unsafe { Library::new(&path) }
            .unwrap_or_else(|e| panic!("NVRTC cannot be loaded from {}: {e}", path.display()));
        let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it"));
        let compiler = Compiler { library, sources: sources() };
        for (architecture, file) in TARGETS {
            let ptx = compiler.ptx(architecture);
            std::fs::write(out.join(file), ptx).expect("the kernels can be written");
        }
        println!("cargo:rustc-cfg=cuda");
    }

    /// The library of the package nvidia-cuda-nvrtc-cu12, in the Python that builds or is found first.
    fn installed() -> PathBuf {
        let find = "import glob, nvidia.cuda_nvrtc as package\n\
                    folder = list(package.__path__)[0]\n\
                    print(glob.glob(folder + '/lib/libnvrtc.so.*')[0])";
        let python = std::env::var_os("PYO3_PYTHON").unwrap_or_else(|| "python3".into());
        let why = match Command::new(&python).args(["-c", find]).output() {
            Ok(output) if output.status.success() => {
                return PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
            }
            Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            Err(e) => e.to_string(),
        };
        panic!(
            "NVRTC, which compiles the kernels, is not found with {}: `pip install \
             nvidia-cuda-nvrtc-cu12==12.0.140` there, or name its library with {LIBRARY}. {why}",
            Path::new(&python).display()
        )
    }

    /// Names and texts of the files of kernels.
    fn sources() -> Vec<(CString, CString)> {
        let text = |bytes: &[u8]| CString::new(bytes).expect("sources are text");
        std::fs::read_dir(KERNELS)
            .expect("the folder of kernels")
            .map(|entry| entry.expect("a file of kernels").path())
            .map(|path| {
                let name = path.file_name().expect("a file's name").to_string_lossy();
                (text(name.as_bytes()), text(&std::fs::read(&path).expect("a file of kernels")))
            })
            .collect()
    }

    struct Compiler {
        library: Library,
        sources: Vec<(CString, CString)>,
    }

    type Program = *mut c_void;
    type Texts = *const *const c_char;

    // Signatures of nvrtc.h.
    type Create = unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        Texts,
        Texts,
    ) -> c_int;
    type Compile = unsafe extern "C" fn(Program, c_int, Texts) -> c_int;
    type Destroy = unsafe extern "C" fn(*mut Program) -> c_int;
    type SizeOf = unsafe extern "C" fn(Program, *mut usize) -> c_int;
    type Read = unsafe extern "C" fn(Program, *mut c_char) -> c_int;

    impl Compiler {
        fn ptx(&self, architecture: &str) -> Vec<u8> {
            let pointers = |texts: &[CString]| texts.iter().map(|t| t.as_ptr()).collect::<Vec<_>>();
            let (names, texts): (Vec<_>, Vec<_>) = self.sources.iter().cloned().unzip();
            let main = names.iter().position(|name| name.as_bytes() == ALL.as_bytes()).expect(ALL);
            let options = [format!("--gpu-architecture={architecture}"), "--std=c++17".to_owned()]
                .map(|option| CString::new(option).expect("options are text"));
            let (headers, included, flags) =
                (pointers(&texts), pointers(&names), pointers(&options));
            let mut program: Program = null_mut();
            // SAFETY: the functions have these signatures; all pointers are to what they say, and live.
            unsafe {
                let create: Symbol<'_, Create> = self.function("nvrtcCreateProgram");
                let (count, name) = (headers.len() as c_int, names[main].as_ptr());
                let main = texts[main].as_ptr();
                let created =
                    create(&mut program, main, name, count, headers.as_ptr(), included.as_ptr());
                assert_eq!(created, 0, "NVRTC takes no program");
                let compile: Symbol<'_, Compile> = self.function("nvrtcCompileProgram");
                let compiled = compile(program, flags.len() as c_int, flags.as_ptr());
                let log = self.text(program, "nvrtcGetProgramLog");
                let log = String::from_utf8_lossy(&log);
                assert_eq!(compiled, 0, "the kernels do not compile for {architecture}:\n{log}");
                let ptx = self.text(program, "nvrtcGetPTX");
                let destroy: Symbol<'_, Destroy> = self.function("nvrtcDestroyProgram");
                destroy(&mut program);
                ptx
            }
        }

        fn function<T>(&self, name: &str) -> Symbol<'_, T> {
            // SAFETY: the callers name a function of the type they ask for.
            unsafe { self.library.get(name.as_bytes()) }.unwrap_or_else(|e| panic!("{name}: {e}"))
        }

        /// What the function called `name` says of a program.
        ///
        /// # Safety
        /// It is one that reads a text, and has a sister that tells its size.
        unsafe fn text(&self, program: Program, name: &str) -> Vec<u8> {
            let size_of: Symbol<'_, SizeOf> = self.function(&format!("{name}Size"));
            let read: Symbol<'_, Read> = self.function(name);
            let mut size = 0;
            // SAFETY: the caller vouches; the buffer is as large as the first says.
            unsafe {
                assert_eq!(size_of(program, &mut size), 0, "{name}Size");
                let mut text = vec![0u8; size];
                assert_eq!(read(program, text.as_mut_ptr().cast()), 0, "{name}");
                let text = CStr::from_bytes_until_nul(&text).expect("texts end with a zero");
                text.to_bytes().to_vec()
            }
        }
    }
}
