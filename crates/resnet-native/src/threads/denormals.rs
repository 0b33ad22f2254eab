//! Denormal numbers.

#[cfg(x86_code)]
use std::arch::asm;
use std::marker::PhantomData;

/// Makes this thread treat denormal numbers as zero, until what it returns is dropped: arithmetic on them costs two
/// hundred times as much, and gradients run through them on their way to zero.
pub fn flush_denormals() -> FlushedDenormals {
    #[cfg(x86_code)]
    {
        const FLUSH_TO_ZERO: u32 = 1 << 15;
        const DENORMALS_ARE_ZERO: u32 = 1 << 6;
        let mut control = 0u32;
        // SAFETY: SSE is part of x86-64; this only reads the thread's control word.
        unsafe { asm!("stmxcsr [{}]", in(reg) &mut control, options(nostack)) };
        set_control(control | FLUSH_TO_ZERO | DENORMALS_ARE_ZERO);
        FlushedDenormals { control, thread: PhantomData }
    }
    #[cfg(not(x86_code))]
    FlushedDenormals { thread: PhantomData }
}

/// Given by [`flush_denormals`]; dropped, it sets the thread back to what it did before.
#[must_use]
pub struct FlushedDenormals {
    /// The control word before.
    #[cfg(x86_code)]
    control: u32,
    /// Keeps this on its thread.
    thread: PhantomData<*const ()>,
}

impl Drop for FlushedDenormals {
    fn drop(&mut self) {
        #[cfg(x86_code)]
        set_control(self.control);
    }
}

#[cfg(x86_code)]
fn set_control(control: u32) {
    // SAFETY: SSE is part of x86-64; but for the two denormal bits the word is the one the thread had.
    unsafe { asm!("ldmxcsr [{}]", in(reg) &control, options(nostack)) };
}
