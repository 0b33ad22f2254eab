//! What the tests of the kernels share: cases, operands, batch norms, and what should come of them.

pub mod cases;
pub mod data;
pub mod expected;
pub mod norms;
pub mod operands;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use resnet_graph::Precision;
use resnet_native::Isa;
use resnet_native::kernels::{Kernels, select};

/// The kernels of an instruction set for a precision.
#[derive(Clone, Copy)]
pub struct Tested {
    pub kernels: &'static dyn Kernels,
    pub precision: Precision,
}

impl Tested {
    /// None, with the reason printed, where this machine lacks the instruction set or `RESNET_ISA`
    /// forces another.
    pub fn new(isa: Isa, precision: Precision) -> Option<Self> {
        if !isa.is_available() {
            eprintln!("skipped: this machine has no {}", isa.name());
            return None;
        }
        let kernels = select(Some(isa), precision).expect("an instruction set that is available").body;
        if kernels.isa() != isa {
            eprintln!("skipped: RESNET_ISA forces {}", kernels.isa().name());
            return None;
        }
        Some(Self { kernels, precision })
    }

    /// What a failure is said to be of.
    pub fn name(self) -> String {
        format!("{} {}", self.kernels.isa().name(), self.precision.name())
    }
}

/// Checks some kernels on values of a strategy, and shrinks those that fail.
pub fn on_random<S: Strategy>(isa: Isa, precision: Precision, values: S, check: impl Fn(Tested, S::Value)) {
    let Some(tested) = Tested::new(isa, precision) else { return };
    let config =
        ProptestConfig { cases: 32, max_shrink_iters: 300, failure_persistence: None, ..ProptestConfig::default() };
    let result = TestRunner::new(config).run(&values, |value| {
        check(tested, value);
        Ok(())
    });
    result.unwrap_or_else(|failure| panic!("{failure}"));
}
