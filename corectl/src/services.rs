//! `corectl services`: list, describe, call.

use std::time::Duration;

use core_proto::v1::{
    ServiceDescription, ServiceInfo, ServiceRegistryCallRequest, ServiceRegistryDescribeRequest,
    ServiceRegistryListRequest,
};
use serde::Serialize;

use crate::arguments;
use crate::cli::{CallArgs, Global, ServicesCommand};
use crate::connect::{Core, UNARY_TIMEOUT};
use crate::failure::Failure;
use crate::json::Payload;
use crate::output::{Cell, Form, Output, Table, Tone};
use crate::text::nearest;
use crate::time;

/// Services in one answer; the most that the contract allows.
const PAGE_SIZE: u32 = 1000;

/// The JSON shape of a service.
#[derive(Debug, Serialize)]
struct ServiceView {
    name: String,
    provider: String,
    available: bool,
    summary: String,
    parameters: Vec<String>,
    idempotent: bool,
    read_only: bool,
    default_timeout_seconds: Option<f64>,
    deprecation: Option<String>,
    input_schema: Payload,
    output_schema: Payload,
    registered_at: Option<String>,
    stats: StatsView,
}

#[derive(Debug, Default, Serialize)]
struct StatsView {
    calls: u64,
    errors: u64,
    in_flight: u64,
    total_seconds: f64,
    latency: Vec<LatencyView>,
}

/// Calls that took at most so long; `null`: longer than any bound.
#[derive(Debug, Serialize)]
struct LatencyView {
    at_most_seconds: Option<f64>,
    calls: u64,
}

/// The JSON shape of a call's result.
#[derive(Debug, Serialize)]
struct ResultView<'a> {
    service: &'a str,
    content_type: &'a str,
    result_encoding: &'static str,
    result: Payload,
}

impl From<ServiceInfo> for ServiceView {
    fn from(info: ServiceInfo) -> Self {
        let description = info.description.unwrap_or_default();
        let stats = info.stats.unwrap_or_default();
        Self {
            name: description.name,
            provider: info.provider,
            available: info.available,
            summary: description.summary,
            parameters: description.parameters,
            idempotent: description.idempotent,
            read_only: description.read_only,
            default_timeout_seconds: description.default_timeout.as_ref().map(time::seconds),
            deprecation: Some(description.deprecation).filter(|text| !text.is_empty()),
            input_schema: Payload::json(&description.input_schema),
            output_schema: Payload::json(&description.output_schema),
            registered_at: time::rfc3339(info.registered_at.as_ref()),
            stats: StatsView {
                calls: stats.calls,
                errors: stats.errors,
                in_flight: stats.in_flight,
                total_seconds: stats.total_time.as_ref().map_or(0.0, time::seconds),
                latency: stats
                    .latency
                    .iter()
                    .map(|bucket| LatencyView {
                        at_most_seconds: bucket.at_most.as_ref().map(time::seconds),
                        calls: bucket.calls,
                    })
                    .collect(),
            },
        }
    }
}

/// Runs a command of this group.
pub(crate) async fn run(
    global: &Global,
    command: &ServicesCommand,
    output: &mut Output,
) -> Result<(), Failure> {
    match command {
        ServicesCommand::List { pattern } => {
            let core = Core::connect(global).await?;
            let pattern = pattern.as_deref().unwrap_or("");
            show_list(all(&core, pattern).await?, output)
        }
        ServicesCommand::Describe { name } => {
            let core = Core::connect(global).await?;
            describe(&core, name, output).await
        }
        ServicesCommand::Call(call) => {
            let arguments = arguments::of_call(&call.pairs, call.args.as_deref())?;
            let core = Core::connect(global).await?;
            self::call(&core, call, arguments, output).await
        }
    }
}

async fn all(core: &Core, pattern: &str) -> Result<Vec<ServiceInfo>, Failure> {
    Core::all_pages(async |page_token| {
        let question = ServiceRegistryListRequest {
            pattern: pattern.to_owned(),
            page_size: PAGE_SIZE,
            page_token,
        };
        let mut client = core.services();
        let page = core
            .ask("", UNARY_TIMEOUT, question, |request| client.list(request))
            .await?;
        Ok((page.services, page.next_page_token))
    })
    .await
}

fn name(info: &ServiceInfo) -> &str {
    info.description
        .as_ref()
        .map_or("", |description| description.name.as_str())
}

fn availability(info: &ServiceInfo) -> Cell {
    if info.available {
        Cell::new("yes", Tone::Good)
    } else {
        Cell::new("no", Tone::Bad)
    }
}

fn show_list(services: Vec<ServiceInfo>, output: &mut Output) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct List {
        services: Vec<ServiceView>,
    }
    match output.form() {
        Form::Json => output.json(&List {
            services: services.into_iter().map(ServiceView::from).collect(),
        }),
        Form::Quiet => services.iter().try_for_each(|info| output.line(name(info))),
        Form::Table => {
            let mut table = Table::new([
                "NAME",
                "PROVIDER",
                "AVAILABLE",
                "CALLS",
                "ERRORS",
                "SUMMARY",
            ]);
            for info in &services {
                let stats = info.stats.clone().unwrap_or_default();
                let summary = info
                    .description
                    .as_ref()
                    .map_or("", |it| it.summary.as_str());
                table.row([
                    name(info).into(),
                    Cell::from(&info.provider),
                    availability(info),
                    stats.calls.to_string().into(),
                    stats.errors.to_string().into(),
                    Cell::new(summary, Tone::Faint),
                ]);
            }
            output.table(&table, "no services")
        }
    }
}

async fn describe(core: &Core, name: &str, output: &mut Output) -> Result<(), Failure> {
    let mut client = core.services();
    let question = ServiceRegistryDescribeRequest {
        name: name.to_owned(),
    };
    let info = match core
        .ask(name, UNARY_TIMEOUT, question, |request| {
            client.describe(request)
        })
        .await
    {
        Ok(response) => response.service.unwrap_or_default(),
        Err(failure) => return Err(explained(core, name, failure).await),
    };
    match output.form() {
        Form::Json => output.json(&ServiceView::from(info)),
        Form::Quiet => output.line(self::name(&info)),
        Form::Table => output.table(&facts(&info), ""),
    }
}

fn facts(info: &ServiceInfo) -> Table {
    let nothing = ServiceDescription::default();
    let description = info.description.as_ref().unwrap_or(&nothing);
    let stats = info.stats.clone().unwrap_or_default();
    let word = |yes| if yes { "yes" } else { "no" };
    let mut table = Table::facts();
    table.fact("name", &description.name);
    table.fact("provider", &info.provider);
    table.fact("available", availability(info));
    table.fact("summary", &description.summary);
    if !description.deprecation.is_empty() {
        table.fact(
            "deprecated",
            Cell::new(&description.deprecation, Tone::Waiting),
        );
    }
    table.fact("parameters", description.parameters.join(", "));
    table.fact("idempotent", word(description.idempotent));
    table.fact("read only", word(description.read_only));
    if let Some(timeout) = &description.default_timeout {
        table.fact("timeout", time::short(time::duration(timeout)));
    }
    table.fact(
        "arguments",
        Payload::json(&description.input_schema).line(""),
    );
    table.fact("result", Payload::json(&description.output_schema).line(""));
    table.fact("registered", time::local(info.registered_at.as_ref()));
    table.fact("calls", stats.calls.to_string());
    table.fact("errors", stats.errors.to_string());
    table.fact("in flight", stats.in_flight.to_string());
    if let (Some(total), 1..) = (&stats.total_time, stats.calls) {
        let calls = u32::try_from(stats.calls).unwrap_or(u32::MAX);
        let average: Duration = time::duration(total) / calls;
        table.fact("average", format!("{:.1} ms", average.as_secs_f64() * 1e3));
    }
    table
}

async fn call(
    core: &Core,
    call: &CallArgs,
    arguments: Vec<u8>,
    output: &mut Output,
) -> Result<(), Failure> {
    let question = ServiceRegistryCallRequest {
        service: call.name.clone(),
        content_type: String::new(),
        arguments: arguments.into(),
        wait_for_ready: call.wait,
    };
    let mut client = core.services();
    let answer = core
        .call(&call.name, question, |request| client.call(request))
        .await;
    let response = match answer {
        Ok(response) => response,
        Err(failure) => return Err(explained(core, &call.name, failure).await),
    };
    if output.form() == Form::Json {
        let result = Payload::new(&response.content_type, &response.result);
        return output.json(&ResultView {
            service: &call.name,
            content_type: content_type(&response.content_type),
            result_encoding: result.encoding(),
            result,
        });
    }
    if response.result.is_empty() {
        return Ok(());
    }
    output.data(&response.result)
}

/// The content type meant: an empty one is JSON.
pub(crate) fn content_type(given: &str) -> &str {
    if given.is_empty() {
        core_proto::contract::JSON
    } else {
        given
    }
}

/// Adds "did you mean" to a failure about a service that does not exist.
async fn explained(core: &Core, name: &str, mut failure: Failure) -> Failure {
    if failure.reason() == "NO_SUCH_SERVICE" {
        let services = all(core, "").await.unwrap_or_default();
        failure.suggest(nearest(name, services.iter().map(self::name)));
    }
    failure
}
