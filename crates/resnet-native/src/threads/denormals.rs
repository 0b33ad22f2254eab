//! Denormal numbers.

#[cfg(target_arch = "x86_64")]
use std::arch::asm;
use std::marker::PhantomData;

/// Makes this thread treat denormal numbers as zero, until what it returns is dropped: arithmetic on them costs two
/// hundred times as much, and gradients run through them on their way to zero.
pub fn flush_denormals() -> FlushedDenormals {
    #[cfg(target_arch = "x86_64")]
    {
        const FLUSH_TO_ZERO: u32 = 1 << 15;
        const DENORMALS_ARE_ZERO: u32 = 1 << 6;
        let mut control = 0u32;
        // SAFETY: SSE is part of x86-64; this only reads the thread's control word.
        unsafe { asm!("stmxcsr [{}]", in(reg) &mut control, options(nostack)) };
        set_control(control | FLUSH_TO_ZERO | DENORMALS_ARE_ZERO);
        FlushedDenormals { control, thread: PhantomData }
    }
    #[cfg(not(target_arch = "x86_64"))]
    FlushedDenormals { thread: PhantomData }
}

/// Given by [`flush_denormals`]; dropped, it sets the thread back to what it did before.
#[must_use]
pub struct FlushedDenormals {
    /// The control word before.
    #[cfg(target_arch = "x86_64")]
    control: u32,
    /// Keeps this on its thread.
    thread: PhantomData<*const ()>,
}

impl Drop for FlushedDenormals {
    fn drop(&mut self) {
        #[cfg(target_arch = "x86_64")]
        set_control(self.control);
    }
}

#[cfg(target_arch = "x86_64")]
fn set_control(control: u32) {
    // SAFETY: SSE is part of x86-64; but for the two denormal bits the word is the one the thread had.
    unsafe { asm!("ldmxcsr [{}]", in(reg) &control, options(nostack)) };
}
