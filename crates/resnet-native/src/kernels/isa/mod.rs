//! Vector types and matrix units: a file an instruction set, with the blocking that fits its
//! registers.

#[cfg(x86_code)]
pub mod amx;
#[cfg(x86_code)]
pub mod avx2;
#[cfg(x86_code)]
pub mod avx512;
pub mod portable;
