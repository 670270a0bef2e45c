//! The command line: what is typed → one call, and how that call ended → an exit code.

use std::ffi::OsString;
use std::io::{self, BufRead as _, Read as _, Write as _};
use std::num::NonZeroUsize;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{self, ExitCode};
use std::thread;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use jiff::civil::Date;
use modelgate::app::dashboard::Task;
use modelgate::app::replay::Verdict;
use modelgate::app::{self, BaselineSources, FeatureSource, operate};
use modelgate::clock::Clock;
use modelgate::config::{self, Config, ConfigErrors, Flags, Purpose, Sources};

#[path = "main/keys.rs"]
mod keys;

/// `EX_CONFIG` of sysexits.h.
const CONFIG_ERROR: u8 = 78;

/// What `replay` exits with when the answers differ, and `verify` when the version is not fit: both have done their work,
/// and found what a script should tell from a failure of its own.
const DIFFERENT: u8 = 3;

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
  modelgate baseline --data train.csv --model-dir model --out model/baseline.json
      What the training data look like, for the gateway to see drift from.
  modelgate keys create --name shop --plan basic
      An API key, shown once.
  modelgate replay 019ad9c4-7b80-7c1e-9e70-3f2a5d1c8b46 --config gate.toml
      Whether the version that answered a stored request still answers the same.
  modelgate dashboard put --config gate.toml --alarm-action arn:aws:sns:eu-west-1:123456789012:on-call
      A CloudWatch dashboard and alarms; says what they cost a month first, and asks.
  modelgate keys rotate 7Kq3ZrT0aB --overlap 24h
      A new key in the place of that one, which works on for a day.
  modelgate models history credit-score
      What a running gateway served, refused and rolled back, and why.

Exit codes: 0 done, 1 failed, 2 not understood, 3 replayed and different, 78 mistakes in the configuration.";

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
    /// Try one version within limits, as the gateway asks on standard input
    #[command(hide = true)]
    Probe,
    /// See and choose which versions a running gateway serves
    #[command(subcommand)]
    Models(Models),
    /// Judge one version as a gateway would before it serves it, without a gateway
    Verify(Verify),
    /// Check everything a gateway needs from outside, one line each
    Doctor(Gateway),
    /// Make a drift baseline of training data, to be logged with a version as baseline.json
    Baseline(BaselineArgs),
    /// Ask a stored request again of the version that answered it, and compare
    Replay(Replay),
    /// The CloudWatch dashboard and alarms, with their price a month
    #[command(subcommand)]
    Dashboard(Dashboard),
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

#[derive(Debug, Args)]
struct BaselineArgs {
    /// The training data: CSV whose header has the signature's columns; an empty cell is a missing value
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Where the baseline goes
    #[arg(long, value_name = "FILE", default_value = "baseline.json")]
    out: PathBuf,
    /// The version's folder (with `MLmodel`): its signature, and its predictions for the rows
    #[arg(long, value_name = "DIRECTORY", conflicts_with = "signature")]
    model_dir: Option<PathBuf>,
    /// An `MLmodel` file, for its signature alone; with neither, every column is a feature
    #[arg(long, value_name = "FILE")]
    signature: Option<PathBuf>,
    /// Bins of a numeric feature
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u8).range(2..=50))]
    bins: u8,
}

impl BaselineArgs {
    fn sources(self) -> BaselineSources {
        let features = match (self.model_dir, self.signature) {
            (Some(folder), _) => FeatureSource::ModelDir(folder),
            (None, Some(file)) => FeatureSource::Signature(file),
            (None, None) => FeatureSource::Data,
        };
        BaselineSources { data: self.data, features, bins: self.bins.into(), out: self.out }
    }
}

#[derive(Debug, Subcommand)]
enum Dashboard {
    /// Print the dashboard's body
    Print(Panel),
    /// Put the dashboard and its alarms into CloudWatch, in place of those of the same names
    Put {
        /// Do not ask whether the price is right
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        panel: Panel,
    },
}

#[derive(Debug, Args)]
struct Panel {
    /// The dashboard's name
    #[arg(long, default_value = "modelgate")]
    name: String,
    /// The region; that of the AWS configuration if left out
    #[arg(long)]
    region: Option<String>,
    /// Numeric features of a model, for the price
    #[arg(long, default_value_t = 20)]
    features: u32,
    /// Text features of a model, for the price
    #[arg(long, default_value_t = 0)]
    text_features: u32,
    /// Categories of a text feature, for the price
    #[arg(long, default_value_t = 10)]
    categories: u32,
    /// Classes a model predicts, for the price
    #[arg(long, default_value_t = 3)]
    classes: u32,
    /// Who is told of an alarm, such as an SNS topic; may be given up to five times
    #[arg(long = "alarm-action", value_name = "ARN")]
    actions: Vec<String>,
    #[command(flatten)]
    gateway: Place,
}

#[derive(Debug, Args)]
struct Replay {
    /// The request's id, as its answer's `X-Request-Id`
    request_id: String,
    /// Where samples are; where the configuration says if left out
    #[arg(long, value_name = "s3://BUCKET/PREFIX|DIRECTORY")]
    samples: Option<String>,
    /// Look only at this model's samples
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Look only at this day's samples (UTC); the day in the id if left out
    #[arg(long, value_name = "YYYY-MM-DD")]
    date: Option<Date>,
    /// Write the verdict and the answers as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Place,
}

/// Where a gateway keeps what it remembers.
#[derive(Debug, Args)]
struct Place {
    /// The gateway's configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The gateway's data directory
    #[arg(long, value_name = "DIRECTORY")]
    data_dir: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Models {
    /// Show every model: what serves, what is on trial, what is wanted
    List {
        #[command(flatten)]
        desk: Desk,
    },
    /// Show what happened to a model's versions, newest first
    History {
        /// The model's name
        model: String,
        #[command(flatten)]
        desk: Desk,
    },
    /// Serve a version now, until the registry wants another than it does now
    Promote {
        /// The model's name
        model: String,
        /// The version's number
        version: u64,
        #[command(flatten)]
        desk: Desk,
    },
    /// Go back to the version before, or end the trial; the version that is left is not served again by itself
    Rollback {
        /// The model's name
        model: String,
        #[command(flatten)]
        desk: Desk,
    },
    /// Serve a version until it is unpinned
    Pin {
        /// The model's name
        model: String,
        /// The version's number
        version: u64,
        #[command(flatten)]
        desk: Desk,
    },
    /// Follow the registry again
    Unpin {
        /// The model's name
        model: String,
        #[command(flatten)]
        desk: Desk,
    },
}

/// A running gateway, and who speaks to it.
#[derive(Debug, Args)]
struct Desk {
    /// The gateway's admin address; the one in the configuration if left out
    #[arg(long, value_name = "URL")]
    admin: Option<String>,
    /// The gateway's configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Why, for the history
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

#[derive(Debug, Args)]
struct Verify {
    /// A folder with an `MLmodel` file, or `models:/name/3` or `models:/name@alias` in the configured registry
    version: String,
    /// The verdict as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    gateway: Gateway,
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
        Command::Baseline(baseline) => {
            silence_runtime()?;
            print(&app::baseline(baseline.sources())?)
        }
        Command::Replay(replay) => {
            silence_runtime()?;
            replay.run()
        }
        Command::Dashboard(Dashboard::Print(panel)) => panel.run(Task::Print, tell),
        Command::Dashboard(Dashboard::Put { yes: true, panel }) => panel.run(Task::Put, tell),
        Command::Dashboard(Dashboard::Put { yes: false, panel }) => panel.run(Task::Put, tell_and_ask),
        Command::Probe => run_probe(),
        Command::Models(models) => run_models(models),
        Command::Verify(Verify { version, json, gateway }) => {
            silence_runtime()?;
            let (text, good) = app::verify(gateway.sources_for(Purpose::Keys), &version, json)?;
            print(&text)?;
            anyhow::ensure!(good, NotFit);
            Ok(())
        }
        Command::Doctor(gateway) => {
            silence_runtime()?;
            let (text, good) = app::doctor(&config::load(&gateway.sources())?.config)?;
            print(&text)?;
            anyhow::ensure!(good, "something is missing; each line says what to do");
            Ok(())
        }
        Command::Keys(keys) => keys.run(Clock::system().now()),
    }
}

impl Panel {
    fn run(self, task: Task, may_go_on: fn(&str) -> anyhow::Result<bool>) -> anyhow::Result<()> {
        let Self { name, region, features, text_features, categories, classes, actions, gateway } = self;
        let model = app::dashboard::Shape { features, text_features, categories, classes };
        let options = app::dashboard::Options { name, region, model, actions };
        print(&app::dashboard::dashboard(&gateway.load()?, options, task, may_go_on)?)
    }
}

/// Tells the price beside the body, so that the body can be piped.
fn tell(price: &str) -> anyhow::Result<bool> {
    io::stderr().write_all(price.as_bytes()).context("cannot write to standard error")?;
    Ok(true)
}

/// Tells the price, and takes what is typed for an answer. Where nobody types anything, that is a no.
fn tell_and_ask(price: &str) -> anyhow::Result<bool> {
    tell(&format!("{price}Put the dashboard and its alarms? [y/N] "))?;
    let mut answer = String::new();
    io::stdin().lock().take(ANSWER_MAX_BYTES).read_line(&mut answer).context("cannot read the answer")?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// No more of an answer is read.
const ANSWER_MAX_BYTES: u64 = 64;

/// A replayed request was answered in another way than it was then.
#[derive(Debug, thiserror::Error)]
#[error("the version answers in another way than it did")]
struct Different;

/// A version was verified, and found unfit.
#[derive(Debug, thiserror::Error)]
#[error("the version is not fit to serve")]
struct NotFit;

impl Replay {
    fn run(self) -> anyhow::Result<()> {
        let Self { request_id, samples, model, date, json, place } = self;
        let config = place.load()?;
        let report = app::replay::replay(config, app::replay::Request { request_id, samples, model, date })?;
        print(&if json { format!("{}\n", report.to_json()) } else { report.to_string() })?;
        anyhow::ensure!(report.verdict() != Verdict::Different, Different);
        Ok(())
    }
}

/// The largest request to try a version, in bytes: settings, with names of columns and labels.
const MAX_PROBE_REQUEST: u64 = 64 << 20;

fn run_probe() -> anyhow::Result<()> {
    let mut request = String::new();
    io::stdin().take(MAX_PROBE_REQUEST).read_to_string(&mut request).context("cannot read what to try")?;
    print(&app::probe(&request))
}

/// One line for each thing that is wrong, or one line and its causes.
fn report(error: &anyhow::Error) -> ExitCode {
    let (text, code) = if let Some(errors) = error.downcast_ref::<ConfigErrors>() {
        let count = errors.mistakes().len();
        let plural = if count == 1 { "" } else { "s" };
        (format!("{errors}\nmodelgate: {count} mistake{plural} in the configuration\n"), CONFIG_ERROR)
    } else {
        let causes: Vec<String> = error.chain().skip(1).map(|cause| format!("  because {cause}\n")).collect();
        let code = if error.is::<Different>() || error.is::<NotFit>() { DIFFERENT } else { 1 };
        (format!("modelgate: {error}\n{}", causes.concat()), code)
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

fn run_models(models: Models) -> anyhow::Result<()> {
    let (desk, command) = match models {
        Models::List { desk } => (desk, operate::Command::List),
        Models::History { model, desk } => (desk, operate::Command::History { model }),
        Models::Promote { model, version, desk } => (desk, operate::Command::Promote { model, version }),
        Models::Rollback { model, desk } => (desk, operate::Command::RollBack { model }),
        Models::Pin { model, version, desk } => (desk, operate::Command::Pin { model, version }),
        Models::Unpin { model, desk } => (desk, operate::Command::Unpin { model }),
    };
    let sources = sources(desk.config, Flags::default(), Purpose::Keys);
    let by = sources.env.iter().find(|(name, _)| name == "USER").map(|(_, user)| user.clone());
    let admin = match desk.admin {
        Some(admin) => admin,
        None => format!("http://{}", config::load(&sources)?.config.server.admin_listen),
    };
    print(&app::operate(&operate::Desk { admin, by, reason: desk.reason }, command)?)
}

impl Gateway {
    fn sources(self) -> Sources {
        self.sources_for(Purpose::Serve)
    }

    fn sources_for(self, purpose: Purpose) -> Sources {
        let Addresses { listen, admin_listen } = self.addresses;
        let flags =
            Flags { registry: self.registry, models: self.models, listen, admin_listen, data_dir: self.data_dir };
        sources(self.config, flags, purpose)
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

impl Place {
    fn load(self) -> anyhow::Result<Config> {
        let flags = Flags { data_dir: self.data_dir, ..Flags::default() };
        Ok(config::load(&sources(self.config, flags, Purpose::Keys))?.config)
    }
}
