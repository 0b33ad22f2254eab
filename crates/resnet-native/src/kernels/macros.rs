//! What declares the kernels of an instruction set: the algorithms, compiled for its instructions.

/// Implements one method of [`Kernels`]: runs the algorithm, compiled for the instruction set, with
/// the proof that the machine has it.
macro_rules! kernel {
    (peak, [$(#[$feature:meta])?] $($algorithm:tt)+) => {
        fn peak(&self, rounds: usize) -> u64 {
            $(#[$feature])?
            unsafe fn run(rounds: usize) -> u64 {
                // SAFETY: the caller's machine has the instructions.
                let simd = unsafe { $crate::kernels::vector::Simd::new() };
                $crate::kernels::$($algorithm)+(simd, rounds)
            }
            // SAFETY: `select` gives this type out only where the machine has its instructions.
            unsafe { run(rounds) }
        }
    };
    ($method:ident, $band:ident, [$(#[$feature:meta])?] $($algorithm:tt)+) => {
        fn $method(&self, band: $crate::kernels::$band<'_>) {
            $(#[$feature])?
            unsafe fn run(band: $crate::kernels::$band<'_>) {
                // SAFETY: the caller's machine has the instructions.
                let simd = unsafe { $crate::kernels::vector::Simd::new() };
                $crate::kernels::$($algorithm)+(simd, band)
            }
            // SAFETY: `select` gives this type out only where the machine has its instructions.
            unsafe { run(band) }
        }
    };
}
pub(super) use kernel;

/// Implements [`Kernels`] in single precision for one instruction set: its vector type, and the
/// blocking of the two convolution kernels (accumulators must fit the registers).
macro_rules! implement_kernels {
    (
        $name:ident, $isa:expr, $vector:ty, $(#[$feature:meta])?
        conv: $block:literal channels x $pixels:literal pixels, or x $quads:literal at a point,
        weights: $outputs:literal outputs x $inputs:literal inputs x 3 columns, or $many:literal x $few:literal at a point
    ) => {
        impl $crate::kernels::Kernels for $name {
            fn isa(&self) -> $crate::kernels::Isa {
                $isa
            }

            fn layout(&self) -> $crate::layout::Layout {
                $crate::layout::Layout::Lanes
            }

            fn schedule(&self) -> $crate::kernels::Schedule {
                $crate::kernels::lanes::SCHEDULE
            }

            fn stem(&self, conv: &$crate::geometry::Conv2d) -> $crate::geometry::Conv2d {
                *conv
            }

            fn packed_len(&self, gather: &$crate::layout::gather::Gather) -> usize {
                $crate::kernels::lanes::packed_len(gather, $block)
            }

            fn pack(&self, weights: $crate::kernels::Pack<'_>) {
                $crate::kernels::lanes::pack(weights, $block);
            }

            fn gradient_len(&self, conv: &$crate::geometry::Conv2d) -> usize {
                $crate::kernels::lanes::gradient_len(conv)
            }

            fn unpack_gradient(
                &self, conv: &$crate::geometry::Conv2d, summed: &[f32], first: usize, gradient: &mut [f32],
            ) {
                $crate::kernels::lanes::unpack_gradient(conv, summed, first, gradient);
            }

            fn load_images(&self, images: $crate::kernels::Images<'_>) {
                self.layout().pack_images(images.images, images.conv.input(), images.group);
            }

            fn pad_shortcut(&self, group: $crate::kernels::PadShortcut<'_>) {
                $crate::kernels::lanes::pad_shortcut(group);
            }

            fn pad_shortcut_backward(&self, group: $crate::kernels::PadShortcut<'_>) {
                $crate::kernels::lanes::pad_shortcut_backward(group);
            }

            fn avg_pool(&self, group: $crate::kernels::AvgPool<'_>) {
                $crate::kernels::lanes::avg_pool(group);
            }

            fn avg_pool_backward(&self, group: $crate::kernels::AvgPool<'_>) {
                $crate::kernels::lanes::avg_pool_backward(group);
            }

            $crate::kernels::macros::kernel!(peak, [$(#[$feature])?] lanes::peak::<$vector, $block>);
            $crate::kernels::macros::kernel!(conv, ConvBand, [$(#[$feature])?] lanes::conv::<$vector, $block, $pixels, $quads>);
            $crate::kernels::macros::kernel!(weight_gradient, WeightGradientBand, [$(#[$feature])?]
                lanes::weight_gradient::<$vector, $outputs, $inputs, $many, $few>);
            $crate::kernels::macros::kernel!(normalize, Normalize, [$(#[$feature])?] lanes::normalize::<$vector>);
            $crate::kernels::macros::kernel!(normalize_reduce, NormalizeReduce, [$(#[$feature])?]
                lanes::normalize_reduce::<$vector>);
        }
    };
}
pub(super) use implement_kernels;

/// Implements [`Kernels`] on tiles for one instruction set: what multiplies them, and how many
/// planes they have.
macro_rules! implement_tiled_kernels {
    ($name:ident, $isa:expr, $unit:ty, planes: $planes:literal, $(#[$feature:meta])?) => {
        impl $crate::kernels::Kernels for $name {
            fn isa(&self) -> $crate::kernels::Isa {
                $isa
            }

            fn layout(&self) -> $crate::layout::Layout {
                $crate::layout::Layout::Tiles { planes: $planes }
            }

            fn schedule(&self) -> $crate::kernels::Schedule {
                $crate::kernels::tiles::SCHEDULE
            }

            fn stem(&self, conv: &$crate::geometry::Conv2d) -> $crate::geometry::Conv2d {
                $crate::geometry::Conv2d::new(conv.im2col(), conv.output(), 1, 1, 0)
            }

            fn packed_len(&self, gather: &$crate::layout::gather::Gather) -> usize {
                $crate::kernels::tiles::packed_len(gather, $planes)
            }

            fn gradient_len(&self, conv: &$crate::geometry::Conv2d) -> usize {
                $crate::kernels::tiles::gradient_len(conv)
            }

            fn unpack_gradient(
                &self, conv: &$crate::geometry::Conv2d, summed: &[f32], first: usize, gradient: &mut [f32],
            ) {
                $crate::kernels::tiles::unpack_gradient(conv, summed, first, gradient);
            }

            $crate::kernels::macros::kernel!(peak, [$(#[$feature])?] tiles::peak::<$unit, $planes>);
            $crate::kernels::macros::kernel!(pack, Pack, [$(#[$feature])?] tiles::pack::<$unit, $planes>);
            $crate::kernels::macros::kernel!(load_images, Images, [$(#[$feature])?] tiles::load_images::<$unit, $planes>);
            $crate::kernels::macros::kernel!(conv, ConvBand, [$(#[$feature])?] tiles::conv::<$unit, $planes>);
            $crate::kernels::macros::kernel!(weight_gradient, WeightGradientBand, [$(#[$feature])?] tiles::weight_gradient::<$unit, $planes>);
            $crate::kernels::macros::kernel!(normalize, Normalize, [$(#[$feature])?] tiles::normalize::<$unit, $planes>);
            $crate::kernels::macros::kernel!(normalize_reduce, NormalizeReduce, [$(#[$feature])?]
                tiles::normalize_reduce::<$unit, $planes>);
            $crate::kernels::macros::kernel!(pad_shortcut, PadShortcut, [$(#[$feature])?] tiles::pad_shortcut::<$unit, $planes>);
            $crate::kernels::macros::kernel!(pad_shortcut_backward, PadShortcut, [$(#[$feature])?] tiles::pad_shortcut_backward::<$unit, $planes>);
            $crate::kernels::macros::kernel!(avg_pool, AvgPool, [$(#[$feature])?] tiles::avg_pool::<$unit, $planes>);
            $crate::kernels::macros::kernel!(avg_pool_backward, AvgPool, [$(#[$feature])?] tiles::avg_pool_backward::<$unit, $planes>);
        }
    };
}
pub(super) use implement_tiled_kernels;

/// Implements one method of [`PixelKernels`]: runs the algorithm, compiled for the instruction set
/// and generic over the planes where there are some, with the proof that the machine has the
/// instructions.
macro_rules! pixel_kernel {
    ($method:ident, $band:ident, [$(#[$feature:meta])?] [$($planes:ident)?] $($algorithm:tt)+) => {
        fn $method(&self, band: $crate::kernels::$band<'_>) {
            $(#[$feature])?
            unsafe fn run<$(const $planes: usize)?>(band: $crate::kernels::$band<'_>) {
                // SAFETY: the caller's machine has the instructions.
                let simd = unsafe { $crate::kernels::vector::Simd::new() };
                $crate::kernels::pixels::$($algorithm)+(simd, band)
            }
            // SAFETY: `select_pixels` gives this type out only where the machine has its
            // instructions.
            unsafe { run$(::<$planes>)?(band) }
        }
    };
}
pub(super) use pixel_kernel;

/// Implements [`PixelKernels`] in single precision for one instruction set: its vector type, and
/// the blocking of the convolution (accumulators must fit the registers).
macro_rules! implement_single_pixels {
    (
        $name:ident, $isa:expr, $vector:ty, $(#[$feature:meta])?
        conv: $vectors:literal vectors x $pixels:literal pixels or 1 x $more:literal
    ) => {
        impl $crate::kernels::PixelKernels for $name {
            fn isa(&self) -> $crate::kernels::Isa {
                $isa
            }

            fn format(&self) -> $crate::layout::Format {
                $crate::layout::Format::Single
            }

            $crate::kernels::macros::pixel_kernel!(load, PixelLoad, [$(#[$feature])?] []
                load::<$crate::kernels::pixels::Single<$vector>>);
            $crate::kernels::macros::pixel_kernel!(conv, PixelConv, [$(#[$feature])?] []
                single::conv::<$vector, $vectors, $pixels, $more>);
            $crate::kernels::macros::pixel_kernel!(avg_pool, PixelAvgPool, [$(#[$feature])?] []
                avg_pool::<$crate::kernels::pixels::Single<$vector>>);
        }
    };
}
pub(super) use implement_single_pixels;

/// Implements [`PixelKernels`] in planes of bf16 for one instruction set: what multiplies its
/// tiles.
macro_rules! implement_plane_pixels {
    ($name:ident, $isa:expr, $unit:ty, $(#[$feature:meta])?) => {
        impl<const PLANES: usize> $crate::kernels::PixelKernels for $name<PLANES> {
            fn isa(&self) -> $crate::kernels::Isa {
                $isa
            }

            fn format(&self) -> $crate::layout::Format {
                $crate::layout::Format::Planes(PLANES)
            }

            $crate::kernels::macros::pixel_kernel!(load, PixelLoad, [$(#[$feature])?] [PLANES]
                load::<$crate::kernels::pixels::Planes<$unit, PLANES>>);
            $crate::kernels::macros::pixel_kernel!(conv, PixelConv, [$(#[$feature])?] [PLANES]
                tiles::conv::<$unit, PLANES>);
            $crate::kernels::macros::pixel_kernel!(avg_pool, PixelAvgPool, [$(#[$feature])?] [PLANES]
                avg_pool::<$crate::kernels::pixels::Planes<$unit, PLANES>>);
        }
    };
}
pub(super) use implement_plane_pixels;
