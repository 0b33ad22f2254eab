//! Instruction sets, and which of them this machine has.

use std::str::FromStr;

use crate::error::{Error, Result};

/// An instruction set with kernels of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust, for any machine.
    Portable,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512F.
    Avx512,
    /// AMX in bf16, with AVX-512 around it.
    Amx,
}

impl Isa {
    /// Every instruction set, slowest first.
    pub const ALL: [Self; 4] = [Self::Portable, Self::Avx2, Self::Avx512, Self::Amx];

    /// Name as in `RESNET_ISA`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Amx => "amx",
        }
    }

    /// Whether this machine has it.
    pub fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(x86_code)]
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(x86_code)]
            Self::Avx512 => is_x86_feature_detected!("avx512f"),
            #[cfg(x86_code)]
            Self::Amx => amx::is_available(),
            #[cfg(not(x86_code))]
            _ => false,
        }
    }

    /// The instruction sets this machine has, slowest first.
    pub fn available() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|isa| isa.is_available())
    }
}

impl FromStr for Isa {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|isa| isa.name() == name).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|isa| isa.name()).collect();
            Error::Isa(format!("unknown instruction set '{name}': expected one of {}", names.join(", ")))
        })
    }
}

/// The instruction set to run on: `isa`, or the best the machine has; the variable `RESNET_ISA`
/// overrules both.
///
/// # Errors
/// When the instruction set asked for does not exist or the machine lacks it.
pub fn choose(isa: Option<Isa>) -> Result<Isa> {
    let forced = std::env::var("RESNET_ISA").ok().filter(|name| !name.is_empty());
    let wanted = match forced {
        Some(name) => Some(name.parse().map_err(|error| Error::Isa(format!("RESNET_ISA: {error}")))?),
        None => isa,
    };
    match wanted {
        Some(isa) if !isa.is_available() => Err(Error::Isa(format!("this machine has no {}", isa.name()))),
        Some(isa) => Ok(isa),
        None => Ok(Isa::available().last().unwrap_or(Isa::Portable)),
    }
}

#[cfg(x86_code)]
mod amx {
    //! Whether a machine's matrix unit may be used.

    use std::arch::x86_64::{__cpuid, __cpuid_count};
    use std::sync::LazyLock;

    /// Whether the machine has AMX with bf16 and the system lets this process use it.
    pub fn is_available() -> bool {
        static AVAILABLE: LazyLock<bool> = LazyLock::new(|| {
            const AMX_BF16: u32 = 1 << 22;
            const AMX_TILE: u32 = 1 << 24;
            let vectors = is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512bf16");
            if !vectors || __cpuid(0).eax < 7 {
                return false;
            }
            let features = __cpuid_count(7, 0).edx;
            features & AMX_BF16 != 0 && features & AMX_TILE != 0 && request_permission()
        });
        *AVAILABLE
    }

    /// Asks the system for the registers, once for the process; they are too large to save for
    /// everyone.
    #[cfg(target_os = "linux")]
    fn request_permission() -> bool {
        const ARCH_REQ_XCOMP_PERM: libc::c_int = 0x1023;
        const XFEATURE_XTILEDATA: libc::c_ulong = 18;
        // SAFETY: the call takes two numbers and changes nothing but this process's permission.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
    }

    #[cfg(not(target_os = "linux"))]
    fn request_permission() -> bool {
        false
    }
}
