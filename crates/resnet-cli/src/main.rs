//! The `resnet` command: one line in `run` for each thing it does.

mod args;
mod bench;
mod convert;
mod data;
mod eval;
mod plot;
mod progress;
mod summary;
mod terminal;
mod train;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Deep residual learning, end to end: train, evaluate, plot and convert plain and residual networks
///
/// The networks and recipes are those of He, Zhang, Ren and Sun, "Deep Residual Learning for Image
/// Recognition" (arXiv:1512.03385).
#[derive(Parser)]
#[command(name = "resnet", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Bench(bench::Args),
    Convert(convert::Args),
    Eval(eval::Args),
    Plot(plot::Args),
    Summary(summary::Args),
    Train(Box<train::Args>),
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    let done = |()| ExitCode::SUCCESS;
    match command {
        Command::Bench(args) => bench::run(&args).map(done),
        Command::Convert(args) => convert::run(&args).map(done),
        Command::Eval(args) => eval::run(&args).map(done),
        Command::Plot(args) => plot::run(&args).map(done),
        Command::Summary(args) => summary::run(&args).map(done),
        Command::Train(args) => train::run(&args),
    }
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) if terminal::is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", terminal::message(&error));
            ExitCode::FAILURE
        }
    }
}
