//! [Winograd's method](crate::kernels::winograd) on lane groups.

mod conv;
mod pack;
mod weight_gradient;

pub use conv::conv;
pub use pack::{gradient_len, pack, packed_len, unpack_gradient};
pub use weight_gradient::weight_gradient;
