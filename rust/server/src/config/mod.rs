//! The configuration file: its schema, and everything that is checked before a model is loaded.

mod check;
mod error;
mod expand;
mod explain;
mod files;
mod source;
mod values;

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use moshi_ctl_core::{DeviceName, LmShape, Precision, units};
use serde::{Deserialize, Serialize};
use serde_json::json;
use toml::de::{DeTable, DeValue};

pub use error::ConfigError;
pub use files::FileReference;
pub use values::BatchSize;

pub use crate::limits::{Count, Kibibytes, Limits, MAX_LANES, Mebibytes, Seconds, limits_table};

use crate::limits::CONFIG_BYTES;
use crate::secret::ApiKey;
use error::Finding;
use source::Source;
use values::{auto_or_device, auto_or_precision, device_name};

/// Lanes of an `Asr` module that does not say how many it wants; Kyutai's server makes a new
/// model state per connection there and knows no limit.
const DEFAULT_ASR_LANES: usize = 8;

/// Module types of Kyutai's server that this version does not serve.
const UNSERVED_TYPES: [&str; 6] = ["Tts", "PyBatchedAsr", "Mimi", "Lm", "Py", "PyPost"];

/// A configuration that passed every check that needs no file but its own.
#[derive(Debug, Clone)]
pub struct Config {
    /// Folder of the files served where no route matches.
    pub static_dir: String,
    /// Folder for log files.
    pub log_dir: String,
    /// Name of this server in its log files.
    pub instance_name: String,
    /// Keys that open a module; none: anybody on a loopback address.
    pub authorized_ids: Vec<ApiKey>,
    /// Models to serve, by name.
    pub modules: BTreeMap<String, ModuleConfig>,
    /// What happens before the port opens.
    pub warmup: Warmup,
    /// How lanes are made to fit the machine.
    pub sizing: Sizing,
    /// What is borne of clients and of models.
    pub limits: Limits,
    source: Source,
}

/// The `warmup` section.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Warmup {
    /// Whether each model steps over silence before the port opens.
    pub enabled: bool,
}

impl Default for Warmup {
    fn default() -> Self {
        Self { enabled: true }
    }
}

/// The `sizing` section.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sizing {
    /// MiB of each device's memory that are left free; the controller's default when absent.
    pub reserve_mb: Option<u64>,
    /// Whether memory is computed from the shapes of models, instead of by rules of thumb.
    pub estimate: bool,
    /// Whether lanes that the CPU cannot keep in real time are given up before the port opens.
    pub real_time: bool,
}

impl Default for Sizing {
    fn default() -> Self {
        Self { reserve_mb: None, estimate: true, real_time: true }
    }
}

/// One entry of `modules`, by its `type`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "type")]
pub enum ModuleConfig {
    /// Speech to text, for a few streams; the number is optional.
    Asr(AsrModule),
    /// Speech to text, many streams in one batch.
    BatchedAsr(AsrModule),
}

/// A speech-to-text model and where it is served.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AsrModule {
    /// Path of the route.
    pub path: String,
    /// Weights of the language model: safetensors, `hf://` or a path.
    pub lm_model_file: String,
    /// SentencePiece model of the text tokens.
    pub text_tokenizer_file: String,
    /// Weights of the codec: safetensors.
    pub audio_tokenizer_file: String,
    /// Frames between a sound and the text for it.
    pub asr_delay_in_tokens: usize,
    /// Lanes: streams at the same time.
    #[serde(default = "default_asr_lanes")]
    pub batch_size: BatchSize,
    /// Where the model runs; the controller's choice when absent or `auto`.
    #[serde(
        default,
        alias = "backend",
        deserialize_with = "auto_or_device",
        serialize_with = "device_name"
    )]
    pub device: Option<DeviceName>,
    /// 0: the likeliest token; above: sampling.
    #[serde(default)]
    pub temperature: f64,
    /// Delay, in seconds, a model with a `delay` conditioner is asked for.
    #[serde(default)]
    pub conditioning_delay: Option<f32>,
    /// Whether a model with a `delay` conditioner gets the vector it learnt for "not given".
    #[serde(default)]
    pub conditioning_learnt_padding: bool,
    /// Precision of the weights; the engine's choice when absent or `auto`.
    #[serde(default, deserialize_with = "auto_or_precision")]
    pub precision: Option<Precision>,
    /// Precision of the key/value rings; what goes with `precision` when absent or `auto`.
    #[serde(default, deserialize_with = "auto_or_precision")]
    pub kv_precision: Option<Precision>,
    /// Kyutai's name for `precision`.
    #[serde(default)]
    pub dtype_override: Option<Precision>,
    /// Seconds between token dumps of Kyutai's server; accepted, but nothing is dumped.
    #[serde(default)]
    pub log_frequency_s: Option<f64>,
    /// Shape of the language model.
    pub model: LmShape,
}

fn default_asr_lanes() -> BatchSize {
    BatchSize::Lanes(DEFAULT_ASR_LANES)
}

impl ModuleConfig {
    /// The model, whatever the type.
    pub fn asr(&self) -> &AsrModule {
        match self {
            Self::Asr(module) | Self::BatchedAsr(module) => module,
        }
    }

    /// [`ModuleConfig::asr`], to change what has been checked.
    pub fn asr_mut(&mut self) -> &mut AsrModule {
        match self {
            Self::Asr(module) | Self::BatchedAsr(module) => module,
        }
    }

    /// The type's name in `/api/modules_info`.
    pub fn info_type(&self) -> &'static str {
        match self {
            Self::Asr(_) => "asr",
            Self::BatchedAsr(_) => "batched_asr",
        }
    }

    /// Frames between a sound and the text for it. A `conditioning_delay` decides it for
    /// `BatchedAsr`, and does not for `Asr`, as in Kyutai's server.
    pub fn delay_in_tokens(&self) -> usize {
        match self {
            Self::BatchedAsr(AsrModule { conditioning_delay: Some(delay_s), model, .. })
                if model.conditioners.is_some() =>
            {
                units::delay_in_tokens(*delay_s)
            }
            Self::Asr(module) | Self::BatchedAsr(module) => module.asr_delay_in_tokens,
        }
    }
}

impl Config {
    /// Reads and checks a configuration. `env` answers `$NAME` in file and folder strings.
    ///
    /// # Errors
    /// Says what is wrong, on which line, and what to do about it.
    pub fn load(path: &Path, env: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let text = read_file(path).map_err(|error| ConfigError {
            file: path.to_path_buf(),
            line: None,
            key: None,
            message: format!("cannot be read: {error}"),
            hint: Some("give the path of a TOML file; `moshi-ctl configs` lists ready ones".into()),
        })?;
        Self::parse(&text, path, env)
    }

    /// [`Config::load`] for a text already read; `path` is only used in messages.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(
        text: &str,
        path: &Path,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let mut source = Source::new(path);
        let table = source.parse(text)?;
        let parsed = parse_table(table).and_then(|mut config| {
            config.expand(&env)?;
            config.check()?;
            Ok(config)
        });
        match parsed {
            Ok(config) => Ok(Self { source, ..config }),
            Err(finding) => Err(source.locate(finding)),
        }
    }

    /// The configuration for people and scripts. Keys are counted, not shown.
    pub fn summary_json(&self) -> serde_json::Value {
        json!({
            "file": self.source.file(),
            "static_dir": self.static_dir,
            "log_dir": self.log_dir,
            "instance_name": self.instance_name,
            "authorized_ids": self.authorized_ids.len(),
            "warmup": self.warmup,
            "sizing": self.sizing,
            "limits": self.limits,
            "modules": self.modules,
        })
    }

    fn expand(&mut self, env: &impl Fn(&str) -> Option<String>) -> Result<(), Finding> {
        expand::expand(&mut self.static_dir, &["static_dir"], env)?;
        expand::expand(&mut self.log_dir, &["log_dir"], env)?;
        expand::expand(&mut self.instance_name, &["instance_name"], env)?;
        for (name, module) in &mut self.modules {
            for (key, value) in files::files_mut(module.asr_mut()) {
                expand::expand(value, &["modules", name, key], env)?;
            }
        }
        Ok(())
    }
}

/// The text of a file that is no longer than a configuration may be.
fn read_file(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    let most = CONFIG_BYTES as u64;
    std::fs::File::open(path)?.take(most + 1).read_to_string(&mut text)?;
    if text.len() > CONFIG_BYTES {
        return Err(std::io::Error::other(format!("it is over {most} bytes long")));
    }
    Ok(text)
}

/// Everything but the modules, whose schema depends on their type.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TopLevel {
    static_dir: String,
    log_dir: String,
    instance_name: String,
    #[serde(default)]
    authorized_ids: Vec<String>,
    #[serde(default)]
    warmup: Warmup,
    #[serde(default)]
    sizing: Sizing,
    #[serde(default)]
    limits: Limits,
    /// Of the modules that name none.
    #[serde(default, alias = "backend", deserialize_with = "auto_or_device")]
    device: Option<DeviceName>,
    // Only named so that it is among the suggestions; taken out before.
    #[serde(default)]
    modules: (),
}

fn parse_table(mut table: DeTable<'_>) -> Result<Config, Finding> {
    let modules = match table.remove("modules").map(toml::Spanned::into_inner) {
        Some(DeValue::Table(modules)) if !modules.is_empty() => modules,
        Some(DeValue::Table(_)) | None => {
            let finding = Finding::new(&["modules"], "is missing: there is nothing to serve");
            // A misspelt `modules` is better explained as the unknown key it is.
            return Err(explain::deserialize::<TopLevel>(table, &[])
                .err()
                .unwrap_or_else(|| finding.with_hint("add a section such as [modules.asr]")));
        }
        Some(other) => {
            let message = format!("is a {}, but must be a section", other.type_str());
            return Err(Finding::new(&["modules"], message));
        }
    };
    let top: TopLevel = explain::deserialize(table, &[])?;
    let () = top.modules;
    let authorized_ids = ApiKey::parse_all(&top.authorized_ids).map_err(|error| {
        Finding::new(&["authorized_ids"], error.to_string())
            .with_hint("write each key once, as \"key\" or as \"name:key\" with a name of its own")
    })?;
    let modules = modules
        .into_iter()
        .map(|(name, module)| {
            let name = name.into_inner().into_owned();
            let mut module = parse_module(&name, module.into_inner())?;
            let device = &mut module.asr_mut().device;
            *device = device.or(top.device);
            Ok((name, module))
        })
        .collect::<Result<_, Finding>>()?;
    Ok(Config {
        static_dir: top.static_dir,
        log_dir: top.log_dir,
        instance_name: top.instance_name,
        authorized_ids,
        modules,
        warmup: top.warmup,
        sizing: top.sizing,
        limits: top.limits,
        source: Source::default(),
    })
}

fn parse_module(name: &str, module: DeValue<'_>) -> Result<ModuleConfig, Finding> {
    let DeValue::Table(mut table) = module else {
        let message = format!("is a {}, but must be a section", module.type_str());
        return Err(Finding::new(&["modules", name], message));
    };
    let type_key = ["modules", name, "type"];
    let Some(type_value) = table.remove("type") else {
        return Err(Finding::new(&type_key, "is missing")
            .with_hint("add `type = \"BatchedAsr\"` or `type = \"Asr\"`"));
    };
    let prefix = ["modules", name];
    match type_value.get_ref().as_str() {
        Some("Asr") => Ok(ModuleConfig::Asr(explain::deserialize(table, &prefix)?)),
        Some("BatchedAsr") => {
            let has_batch_size = table.contains_key("batch_size");
            let module = explain::deserialize(table, &prefix)?;
            if !has_batch_size {
                return Err(Finding::new(&["modules", name, "batch_size"], "is missing")
                    .with_hint("add it; it is how many streams are served at the same time"));
            }
            Ok(ModuleConfig::BatchedAsr(module))
        }
        Some(unserved) if UNSERVED_TYPES.contains(&unserved) => {
            let message = format!("modules of type `{unserved}` are not served by this version");
            Err(Finding::new(&type_key, message)
                .with_hint("use `BatchedAsr` or `Asr`, or remove this module"))
        }
        Some(unknown) => {
            let finding = Finding::new(&type_key, format!("there is no module type `{unknown}`"));
            let hint = explain::did_you_mean(unknown, ["BatchedAsr", "Asr"].into_iter());
            Err(Finding { hint, ..finding })
        }
        None => {
            let found = type_value.get_ref().type_str();
            Err(Finding::new(&type_key, format!("is a {found}, but must be a string")))
        }
    }
}
