//! The log and the traces: lines or JSON documents on stderr, spans to a collector.
//!
//! Whatever is said within an attempt names its execution and its number: they are fields of the
//! spans around it.
//!
//! # Limitations
//! Spans go to a collector only in a build with the feature `otlp`, over plain HTTP: one on the
//! same machine, which passes them on. What a killed process had not sent yet is lost.

use std::ffi::OsString;

use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer};

use super::args::LogFormat;
use super::output;

/// The variable that turns the log on; the filter is that of `tracing-subscriber`.
const LOG: &str = "WORKTX_LOG";

/// The log while it is on; what is left is sent when this is dropped.
#[must_use]
pub(super) struct Log {
    #[cfg(feature = "otlp")]
    _traces: Option<otlp::Traces>,
}

/// Begins the log; `default` is the filter where `WORKTX_LOG` says none. Without either it is off.
pub(super) fn begin(format: LogFormat, default: Option<&str>) -> Log {
    #[cfg(feature = "otlp")]
    let (traces, layer) = otlp::begin().unzip();
    #[cfg(not(feature = "otlp"))]
    let layer: Option<tracing_subscriber::layer::Identity> = None;
    let lines = lines(format, default);
    if lines.is_some() || layer.is_some() {
        let _ = tracing_subscriber::registry().with(layer).with(lines).try_init();
    }
    Log {
        #[cfg(feature = "otlp")]
        _traces: traces,
    }
}

/// One that makes no sense is said, and then the log is off too.
fn lines<S>(format: LogFormat, default: Option<&str>) -> Option<Box<dyn Layer<S> + Send + Sync>>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
{
    let asked = std::env::var_os(LOG).filter(|value| !value.is_empty());
    let filter = asked.or_else(|| default.map(OsString::from))?;
    let filter = match EnvFilter::try_new(filter.to_string_lossy()) {
        Ok(filter) => filter,
        Err(error) => {
            output::say(&format!("warning: {LOG}: {error}\n"));
            return None;
        }
    };
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    Some(match format {
        LogFormat::Text => lines.with_filter(filter).boxed(),
        LogFormat::Json => lines.json().with_filter(filter).boxed(),
    })
}

#[cfg(feature = "otlp")]
mod otlp {
    use opentelemetry::trace::TracerProvider as _;
    use opentelemetry_sdk::trace::SdkTracerProvider;
    use tracing_subscriber::Layer;
    use tracing_subscriber::filter::Targets;
    use tracing_subscriber::registry::LookupSpan;

    use crate::cli::output;

    /// Variables of the OpenTelemetry specification that name a collector.
    const ENDPOINTS: [&str; 2] =
        ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
    /// How long the end waits for a collector that does not answer.
    const PATIENCE: std::time::Duration = std::time::Duration::from_secs(2);

    /// The way to a collector.
    pub(super) struct Traces(SdkTracerProvider);

    impl Drop for Traces {
        fn drop(&mut self) {
            if let Err(error) = self.0.shutdown_with_timeout(PATIENCE) {
                output::say(&format!("warning: the last traces could not be sent: {error}\n"));
            }
        }
    }

    /// Spans go where the environment says; `None` where it says nothing.
    pub(super) fn begin<S>() -> Option<(Traces, Box<dyn Layer<S> + Send + Sync>)>
    where
        S: tracing::Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
    {
        let is_set = |name: &&str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        ENDPOINTS.iter().find(|name| is_set(name))?;
        let exporter = match opentelemetry_otlp::SpanExporter::builder().with_http().build() {
            Ok(exporter) => exporter,
            Err(error) => {
                output::say(&format!("warning: no traces are sent: {error}\n"));
                return None;
            }
        };
        let named = opentelemetry_sdk::Resource::builder().with_service_name("worktx").build();
        let provider =
            SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(named).build();
        // Of worktx alone: the sender's own spans would never end.
        let ours = Targets::new().with_target("worktx", tracing::Level::INFO);
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("worktx"));
        Some((Traces(provider), layer.with_filter(ours).boxed()))
    }
}
