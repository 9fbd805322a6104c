//! The description of the API in the form of `OpenAPI` 3.1: made from one table and from the types themselves.
//!
//! # Limitations
//! Problems are described once, as the default answer of every route.

use axum::Json;
use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use super::super::documents::{
    AttemptsDocument, ExecutionDocument, ExecutionsDocument, GuardDocument, GuardRequest, Problem,
    ResolveRequest, Submission, WorkspacesDocument,
};
use crate::coordinator::report::documents::{
    DiffDocument, EventsDocument, ReconcileDocument, ResolveDocument,
};

/// A parameter of a query: its name, its type, what it means.
type Asked = (&'static str, &'static str, &'static str);

/// What an answer is.
enum Said {
    /// A document of this name.
    Document(&'static str),
    /// A document of this name, or another kind of content where that is asked for.
    Either(&'static str, &'static str),
    /// Another kind of content.
    Other(&'static str),
    /// A small JSON object, described by its sentence.
    Plain,
}

struct Route {
    method: &'static str,
    path: &'static str,
    summary: &'static str,
    query: &'static [Asked],
    body: Option<&'static str>,
    said: Said,
    /// Other statuses than 200 that come with the same content, and what they say.
    also: &'static [(&'static str, &'static str)],
}

const WORKSPACE: Asked = ("workspace", "string", "A directory in the work tree");

/// What a stream of events is; a client that comes back to one says what it has seen.
const EVENTS: &str = "text/event-stream";

const ROUTES: [Route; 17] = [
    Route {
        method: "get",
        path: "/v1/health",
        summary: "Whether the server lives",
        query: &[],
        body: None,
        said: Said::Plain,
        also: &[],
    },
    Route {
        method: "get",
        path: "/v1/ready",
        summary: "Whether it takes work, and which work trees cannot be used",
        query: &[],
        body: None,
        said: Said::Plain,
        also: &[("503", "Not yet, not any more, or no work tree can be used")],
    },
    Route {
        method: "get",
        path: "/v1/openapi.json",
        summary: "This description",
        query: &[],
        body: None,
        said: Said::Plain,
        also: &[],
    },
    Route {
        method: "get",
        path: "/v1/workspaces",
        summary: "The work trees that are served",
        query: &[],
        body: None,
        said: Said::Document("WorkspacesDocument"),
        also: &[],
    },
    Route {
        method: "post",
        path: "/v1/reconcile",
        summary: "Settle what crashes left",
        query: &[WORKSPACE],
        body: None,
        said: Said::Document("ReconcileDocument"),
        also: &[],
    },
    Route {
        method: "post",
        path: "/v1/executions",
        summary: "Submit a command: 201, or 200 where the same request was there already",
        query: &[],
        body: Some("Submission"),
        said: Said::Document("ExecutionsDocument"),
        also: &[("201", "It is kept, and will be run")],
    },
    Route {
        method: "get",
        path: "/v1/executions",
        summary: "Attempts, newest first",
        query: &[
            WORKSPACE,
            ("unsettled", "boolean", "Only what is not settled"),
            ("limit", "integer", "At most so many; 0 is all"),
        ],
        body: None,
        said: Said::Document("AttemptsDocument"),
        also: &[],
    },
    Route {
        method: "get",
        path: "/v1/executions/{id}",
        summary: "Everything that is known of an execution",
        query: &[WORKSPACE, ("wait", "string", "Wait so long for its end, such as 30s")],
        body: None,
        said: Said::Document("ExecutionDocument"),
        also: &[],
    },
    Route {
        method: "post",
        path: "/v1/executions/{id}/cancel",
        summary: "Cancel: the row says CANCELLED, a running turn is ended and rolled back",
        query: &[WORKSPACE],
        body: None,
        said: Said::Plain,
        also: &[],
    },
    Route {
        method: "post",
        path: "/v1/executions/{id}/resolve",
        summary: "Decide about a quarantined attempt",
        query: &[WORKSPACE],
        body: Some("ResolveRequest"),
        said: Said::Document("ResolveDocument"),
        also: &[],
    },
    Route {
        method: "get",
        path: "/v1/executions/{id}/diff",
        summary: "What an attempt changed",
        query: &[
            WORKSPACE,
            ("attempt", "integer", "Which; by default the last"),
            ("format", "string", "`json` or `patch`"),
        ],
        body: None,
        said: Said::Either("DiffDocument", "text/x-diff"),
        also: &[],
    },
    Route {
        method: "get",
        path: "/v1/executions/{id}/events",
        summary: "What was recorded; with `Accept: text/event-stream` or `follow` a stream until it is over",
        query: &[
            WORKSPACE,
            ("after", "integer", "Only events with a larger number"),
            ("follow", "boolean", "As a stream"),
        ],
        body: None,
        said: Said::Either("EventsDocument", EVENTS),
        also: &[],
    },
    Route {
        method: "get",
        path: "/v1/executions/{id}/output/{stream}",
        summary: "What the command said: `stdout` or `stderr`",
        query: &[WORKSPACE, ("follow", "boolean", "To its end")],
        body: None,
        said: Said::Other("application/octet-stream"),
        also: &[],
    },
    Route {
        method: "get",
        path: "/v1/events",
        summary: "All events from now on, as server-sent events",
        query: &[(
            "after",
            "string",
            "From there on instead: the id of an event of this stream; a number of the ledger where there is one",
        )],
        body: None,
        said: Said::Other(EVENTS),
        also: &[],
    },
    Route {
        method: "post",
        path: "/v1/guard",
        summary: "Keep attempts off a work tree for a while",
        query: &[],
        body: Some("GuardRequest"),
        said: Said::Document("GuardDocument"),
        also: &[],
    },
    Route {
        method: "post",
        path: "/v1/guard/{lease}",
        summary: "Renew a lease",
        query: &[],
        body: Some("GuardRequest"),
        said: Said::Document("GuardDocument"),
        also: &[],
    },
    Route {
        method: "get",
        path: "/metrics",
        summary: "Figures for Prometheus, OpenMetrics",
        query: &[],
        body: None,
        said: Said::Other("application/openmetrics-text"),
        also: &[],
    },
];

const RELEASE: Route = Route {
    method: "delete",
    path: "/v1/guard/{lease}",
    summary: "End a lease",
    query: &[],
    body: None,
    said: Said::Plain,
    also: &[],
};

fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

fn add<T: JsonSchema>(generator: &mut SchemaGenerator) {
    generator.subschema_for::<T>();
}

/// The description.
pub fn api() -> Value {
    let settings =
        SchemaSettings::draft2020_12().with(|s| s.definitions_path = "/components/schemas".into());
    let mut generator = settings.into_generator();
    add::<Submission>(&mut generator);
    add::<ExecutionsDocument>(&mut generator);
    add::<ExecutionDocument>(&mut generator);
    add::<ResolveRequest>(&mut generator);
    add::<GuardRequest>(&mut generator);
    add::<GuardDocument>(&mut generator);
    add::<WorkspacesDocument>(&mut generator);
    add::<Problem>(&mut generator);
    add::<AttemptsDocument>(&mut generator);
    add::<EventsDocument>(&mut generator);
    add::<DiffDocument>(&mut generator);
    add::<ReconcileDocument>(&mut generator);
    add::<ResolveDocument>(&mut generator);
    let schemas = generator.take_definitions(true);
    let mut paths = Map::new();
    for route in ROUTES.iter().chain([&RELEASE]) {
        let entry = paths.entry(route.path).or_insert_with(|| json!({}));
        entry[route.method] = operation(route);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "worktx serve",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "Run commands in git work trees as transactions",
            "license": { "name": "MIT OR Apache-2.0" },
        },
        // The socket asks for nothing, an address for the token.
        "security": [{}, { "token": [] }],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } },
        },
    })
}

fn operation(route: &Route) -> Value {
    let in_path =
        route.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let mut parameters: Vec<Value> = in_path
        .map(|name| {
            json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } })
        })
        .collect();
    parameters.extend(route.query.iter().map(|(name, kind, what)| {
        json!({ "name": name, "in": "query", "description": what, "schema": { "type": kind } })
    }));
    if matches!(route.said, Said::Either(_, EVENTS) | Said::Other(EVENTS)) {
        let what = "The id of the last event that was seen, of a stream: it goes before `after`";
        parameters.push(json!({
            "name": "Last-Event-ID", "in": "header", "description": what,
            "schema": { "type": "string" },
        }));
    }
    let content = match route.said {
        Said::Document(name) => json!({ "application/json": { "schema": reference(name) } }),
        Said::Either(name, kind) => {
            json!({ "application/json": { "schema": reference(name) }, kind: {} })
        }
        Said::Other(kind) => json!({ kind: {} }),
        Said::Plain => json!({ "application/json": { "schema": { "type": "object" } } }),
    };
    let mut responses = json!({
        "200": { "description": "Done", "content": content },
        "default": {
            "description": "Not done, and why",
            "content": { "application/json": { "schema": reference("Problem") } },
        },
    });
    for (status, what) in route.also {
        responses[*status] = json!({ "description": what, "content": content });
    }
    let mut operation = json!({
        "summary": route.summary,
        "parameters": parameters,
        "responses": responses,
    });
    if let Some(name) = route.body {
        let content = json!({ "application/json": { "schema": reference(name) } });
        operation["requestBody"] = json!({ "required": true, "content": content });
    }
    operation
}

pub(super) async fn page() -> Json<Value> {
    Json(api())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reference_leads_somewhere() {
        let api = api();
        let text = api.to_string();
        let known = api["components"]["schemas"].as_object().expect("schemas");
        let mut count = 0;
        for part in text.split("#/components/schemas/").skip(1) {
            let name = part.split('"').next().unwrap_or_default();
            assert!(known.contains_key(name), "{name}");
            count += 1;
        }
        assert!(count > 20, "{count}");
        assert!(!text.contains("#/$defs/"), "{text}");
        let said = |path: &str, method: &str, status: &str| {
            let responses = &api["paths"][path][method]["responses"];
            responses[status]["content"]["application/json"]["schema"].clone()
        };
        assert_eq!(said("/v1/executions", "post", "201"), reference("ExecutionsDocument"));
        assert_eq!(said("/v1/ready", "get", "503"), json!({ "type": "object" }));
        let of = |path: &str| &api["paths"][path]["get"];
        let kinds = |path: &str| of(path)["responses"]["200"]["content"].clone();
        assert!(kinds("/v1/executions/{id}/diff")["text/x-diff"].is_object());
        for path in ["/v1/events", "/v1/executions/{id}/events"] {
            assert!(kinds(path)[EVENTS].is_object(), "{path}");
            let asked = of(path)["parameters"].as_array().expect("a list");
            assert!(asked.iter().any(|one| one["name"] == "Last-Event-ID"), "{path}");
        }
        assert_eq!(api["security"], json!([{}, { "token": [] }]));
    }
}
