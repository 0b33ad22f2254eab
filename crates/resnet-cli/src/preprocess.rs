//! How images are normalised: the flags for weights that do not say it themselves.

use clap::ValueEnum;
use resnet::data::Preprocess;

/// The normalisation that a network was trained with.
#[derive(clap::Args, Clone, Debug, Default)]
#[command(next_help_heading = "Preprocessing")]
pub struct PreprocessArgs {
    /// How images are normalised, with statistics of the data's training part
    #[arg(long, value_name = "KIND")]
    pub preprocess: Option<PreprocessArg>,
    /// Mean of each channel, pixels being 0 to 1, for example 0.485,0.456,0.406
    #[arg(
        long,
        value_name = "R,G,B",
        value_delimiter = ',',
        allow_hyphen_values = true,
        requires = "std",
        conflicts_with = "preprocess"
    )]
    pub mean: Option<Vec<f32>>,
    /// Standard deviation of each channel, for example 0.229,0.224,0.225
    #[arg(long, value_name = "R,G,B", value_delimiter = ',', allow_hyphen_values = true, requires = "mean")]
    pub std: Option<Vec<f32>>,
}

/// `--preprocess`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PreprocessArg {
    /// subtract the mean image (the paper)
    PixelMean,
    /// subtract each channel's mean and divide by its standard deviation
    Channel,
    /// subtract from each image its own mean
    ImageMean,
}

impl PreprocessArgs {
    /// The choice that was made, if one was.
    pub fn choice(&self) -> Option<Preprocess> {
        match self.preprocess {
            Some(PreprocessArg::PixelMean) => Some(Preprocess::PixelMean),
            Some(PreprocessArg::Channel) => Some(Preprocess::Channel { mean: None, std: None }),
            Some(PreprocessArg::ImageMean) => Some(Preprocess::ImageMean),
            None => self.mean.clone().map(|mean| Preprocess::Channel { mean: Some(mean), std: self.std.clone() }),
        }
    }
}
