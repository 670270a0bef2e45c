//! The command line: what is typed → one call, and how that call ended → an exit code.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::num::NonZeroUsize;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{self, ExitCode};
use std::thread;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use modelgate::app;
use modelgate::clock::Clock;
use modelgate::config::{self, ConfigErrors, Flags, Purpose, Sources};

#[path = "main/keys.rs"]
mod keys;

/// `EX_CONFIG` of sysexits.h.
const CONFIG_ERROR: u8 = 78;

const EXAMPLES: &str = "\
Examples:
  modelgate demo
      A bundled model, a key and a curl line, with no network and no account.
  modelgate serve --registry https://dagshub.com/user/repository.mlflow --model credit-score@champion
      Follow one model of a registry. `serve` may be left out.
  modelgate serve --config gate.toml --listen 0.0.0.0:8080
      What the file says, on another address.
  modelgate check-config --config gate.toml
      Every mistake in the file at once; else what is in effect, and from where.
  modelgate keys create --name shop --plan basic
      An API key, shown once.
  modelgate keys rotate 7Kq3ZrT0aB --overlap 24h
      A new key in the place of that one, which works on for a day.

Exit codes: 0 done, 1 failed, 2 not understood, 78 mistakes in the configuration.";

/// A gateway between apps and an MLflow model registry: swaps model versions live, meters callers, measures features.
#[derive(Debug, Parser)]
#[command(version, about, after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: Gateway,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve models; the default when no command is given
    Serve(Gateway),
    /// Serve a bundled model, with no network and no account
    Demo(Addresses),
    /// Show every mistake in the configuration, or what is in effect and from where
    CheckConfig(Gateway),
    /// Make, list, replace, import and end API keys
    #[command(subcommand)]
    Keys(keys::Keys),
}

/// A gateway's everyday keys. Flags go over the environment, and that over the file.
#[derive(Debug, Args)]
struct Gateway {
    /// The configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The model registry: a URL, or `file:DIRECTORY`
    #[arg(long, value_name = "URI")]
    registry: Option<String>,
    /// A model to serve; may be given more than once
    #[arg(long = "model", value_name = "NAME[@ALIAS|/VERSION]")]
    models: Vec<String>,
    /// Where keys, usage, models and samples are kept
    #[arg(long, value_name = "DIRECTORY")]
    data_dir: Option<String>,
    #[command(flatten)]
    addresses: Addresses,
}

#[derive(Debug, Args)]
struct Addresses {
    /// Where callers connect
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<String>,
    /// Where operators connect
    #[arg(long, value_name = "ADDRESS:PORT")]
    admin_listen: Option<String>,
}

fn main() -> ExitCode {
    // Every TLS client of the process is made with it; the first one to be made may be the exporter of traces.
    rustls::crypto::ring::default_provider().install_default().expect("nothing was installed before main");
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report(&error),
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command.unwrap_or(Command::Serve(cli.serve)) {
        Command::Serve(gateway) => {
            silence_runtime()?;
            app::serve(config::load(&gateway.sources())?.config)
        }
        Command::Demo(addresses) => {
            silence_runtime()?;
            // A visitor who cannot read the welcome is no reason to end the demo.
            app::demo(addresses.sources(), |text| drop(print(text)))
        }
        Command::CheckConfig(gateway) => print(&config::load(&gateway.sources())?.effective.to_string()),
        Command::Keys(keys) => keys.run(Clock::system().now()),
    }
}

/// One line for each thing that is wrong, or one line and its causes.
fn report(error: &anyhow::Error) -> ExitCode {
    let (text, code) = if let Some(errors) = error.downcast_ref::<ConfigErrors>() {
        let count = errors.mistakes().len();
        let plural = if count == 1 { "" } else { "s" };
        (format!("{errors}\nmodelgate: {count} mistake{plural} in the configuration\n"), CONFIG_ERROR)
    } else {
        let causes: Vec<String> = error.chain().skip(1).map(|cause| format!("  because {cause}\n")).collect();
        (format!("modelgate: {error}\n{}", causes.concat()), 1)
    };
    // With standard error closed there is nobody left to tell.
    let _ = io::stderr().write_all(text.as_bytes());
    ExitCode::from(code)
}

/// Writes to standard output, where a closed pipe is an error and not a panic.
fn print(text: &str) -> anyhow::Result<()> {
    io::stdout().write_all(text.as_bytes()).context("cannot write to standard output")
}

/// Starts the program again with `ORT_DISABLE_TELEMETRY` set, unless it is: ONNX Runtime 1.29 and newer report to
/// Microsoft without it, it must be there before the library is loaded, and a process cannot safely change its own
/// environment.
#[expect(clippy::disallowed_methods, reason = "main is where the environment is read")]
fn silence_runtime() -> anyhow::Result<()> {
    const VARIABLE: &str = "ORT_DISABLE_TELEMETRY";
    if std::env::var_os(VARIABLE).is_some() {
        return Ok(());
    }
    let program = std::env::current_exe().context("cannot find the program's own file")?;
    let error = process::Command::new(program).args(std::env::args_os().skip(1)).env(VARIABLE, "1").exec();
    Err(error).context(format!("cannot start again with {VARIABLE} set; set it to 1 before starting"))
}

impl Gateway {
    fn sources(self) -> Sources {
        let Addresses { listen, admin_listen } = self.addresses;
        let flags =
            Flags { registry: self.registry, models: self.models, listen, admin_listen, data_dir: self.data_dir };
        sources(self.config, flags, Purpose::Serve)
    }
}

impl Addresses {
    /// The demo's sources: no registry or model of the visitor's own environment gets into it.
    fn sources(self) -> Sources {
        let flags = Flags { listen: self.listen, admin_listen: self.admin_listen, ..Flags::default() };
        let mut sources = sources(None, flags, Purpose::Serve);
        sources
            .env
            .retain(|(name, _)| matches!(name.as_str(), "RUST_LOG" | "ORT_DYLIB_PATH") || name.starts_with("OTEL_"));
        sources
    }
}

fn sources(file: Option<PathBuf>, flags: Flags, purpose: Purpose) -> Sources {
    let processors = thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    // What is not Unicode is no value of ours, and is told as a mistake where it stands for one.
    let text = |(name, value): (OsString, OsString)| {
        (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned())
    };
    Sources { file, env: std::env::vars_os().map(text).collect(), flags, processors, purpose }
}
