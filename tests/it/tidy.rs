//! The promises of the tree: modules in reading order, a README that knows every flag, key, metric
//! and code, and a `deploy/` that works.

use std::{
    collections::{HashMap, HashSet},
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{CommandFactory as _, Parser as _};
use keda_datadog_scaler::{
    cli::{Cli, Command},
    credentials::CredentialState,
    kubernetes::WatchState,
    metrics::{Limit, Method, Metrics, Organisation, Standing},
    refresh::DemandState,
    sandbox::Fault,
    source::{SourceError, grammar::split},
    trigger::{KEYS, PointOffset, Trigger},
};
use serde_json::Value;

use crate::{
    harness::{examples, repository},
    rbac::documents,
};

fn read(path: impl AsRef<Path>) -> String {
    let path = repository().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn rust_files(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

/// The modules that a file names by `crate::NAME` or in a `use crate::{…}`.
fn uses(source: &str, modules: &[&str]) -> Vec<String> {
    let code: String = source.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    code.split("crate::")
        .skip(1)
        .flat_map(|after| {
            let listed = match after.strip_prefix('{') {
                Some(list) => top_level(list),
                None => vec![after],
            };
            listed.into_iter().map(name).collect::<Vec<_>>()
        })
        .filter(|name| modules.contains(&name.as_str()))
        .collect()
}

/// The items of a `use` list, up to its closing brace.
fn top_level(list: &str) -> Vec<&str> {
    let (mut depth, mut start, mut items) = (0, 0, Vec::new());
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                items.push(&list[start..at]);
                return items;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                items.push(&list[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    items
}

fn name(text: &str) -> String {
    text.trim().chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect()
}

#[test]
fn a_module_uses_only_modules_listed_after_it() {
    let lib = read("src/lib.rs");
    let modules: Vec<&str> =
        lib.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    assert!(modules.len() > 10, "{modules:?}");
    let mut seen = 0;
    for path in rust_files(&repository().join("src")) {
        let relative = path.strip_prefix(repository().join("src")).unwrap();
        let module = relative.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs");
        let Some(place) = modules.iter().position(|name| *name == module) else {
            assert!(matches!(module, "lib" | "main"), "{module} is not listed in lib.rs");
            continue;
        };
        for used in uses(&fs::read_to_string(&path).unwrap(), &modules) {
            let listed = modules.iter().position(|name| *name == used).unwrap();
            assert!(listed >= place, "{} uses `{used}`, listed before it", relative.display());
            seen += 1;
        }
    }
    assert!(seen > 20, "only {seen} uses were found");
}

#[test]
fn the_readme_knows_every_flag_and_its_environment_name() {
    let readme = read("README.md");
    for command in Cli::command().get_subcommands() {
        for argument in command.get_arguments() {
            let Some(long) = argument.get_long().filter(|long| *long != "help") else { continue };
            assert!(readme.contains(&format!("`--{long}`")), "--{long} is not in the README");
            if let Some(environment) = argument.get_env() {
                let environment = environment.to_str().unwrap();
                assert!(readme.contains(environment), "{environment} is not in the README");
            }
        }
    }
}

#[test]
fn the_readme_knows_every_fault_of_the_sandbox() {
    let readme = read("README.md");
    for fault in Fault::ALL {
        let row = format!("| `{fault}` | {} |\n", fault.about());
        assert!(readme.contains(&row), "{row} is not in the README");
    }
}

#[test]
fn the_readme_knows_every_metadata_key() {
    let readme = read("README.md");
    for key in KEYS {
        assert!(readme.contains(&format!("`{key}`")), "{key} is not in the README");
    }
}

#[test]
fn the_readme_knows_every_metric_and_outcome() {
    let readme = read("README.md");
    let metrics = Metrics::new();
    // A family without a member is not shown.
    metrics.answered(Method::IsActive, "OK", Duration::ZERO);
    metrics.stream_opened(Method::StreamIsActive);
    metrics.requested("ok", Duration::ZERO);
    let limit = Limit { requests: 1, remaining: 1, reset: Duration::ZERO };
    let organisation = Organisation {
        host: "dd".into(),
        number: 1,
        limit: Some(limit),
        used_share: 0.0,
        intervals: Some((Duration::ZERO, Duration::ZERO)),
    };
    let standing = Standing {
        organisations: vec![organisation],
        demands: DemandState::ALL.map(|state| (state.name(), 1)).into(),
        held: 1,
        reading_ages: Some((Duration::ZERO, Duration::ZERO)),
        credentials: CredentialState::ALL.map(|state| (state.name(), 1)).into(),
        watches: WatchState::ALL.map(|state| (state.name(), 1)).into(),
    };
    let page = metrics.encode(&standing);
    let samples = page.lines().filter(|line| !line.starts_with('#'));
    let mut names: Vec<&str> = samples.map(|line| line.split(['{', ' ']).next().unwrap()).collect();
    names.dedup();
    assert!(names.len() > 15);
    for name in names {
        let name = name.strip_prefix("keda_datadog_scaler_").expect("it has the prefix");
        let family = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|suffix| name.strip_suffix(suffix))
            .unwrap_or(name);
        assert!(readme.contains(&format!("`{family}`")), "{family} is not in the README");
    }
    let states = DemandState::ALL.map(DemandState::name).into_iter();
    let states = states.chain(CredentialState::ALL.map(CredentialState::name));
    for name in states.chain(WatchState::ALL.map(WatchState::name)) {
        assert!(readme.contains(&format!("`{name}`")), "{name} is not in the README");
    }
}

#[test]
fn the_readme_knows_every_outcome() {
    let readme = read("README.md");
    let host = String::new;
    let after = Duration::ZERO;
    let outcomes = [
        SourceError::Malformed { reason: String::new() },
        SourceError::Refused { status: 0, host: host() },
        SourceError::Throttled { host: host(), limit: None },
        SourceError::Unprocessable,
        SourceError::Outage { host: host(), what: String::new() },
        SourceError::Unreachable { host: host(), cause: String::new() },
        SourceError::TimedOut { host: host(), after },
        SourceError::Misdirected { status: 0, host: host() },
        SourceError::ClockSkew { host: host(), skew: after },
        SourceError::TooLarge { what: String::new() },
        SourceError::NotUnderstood { host: host(), what: String::new() },
        SourceError::NoAgent { status: 0, host: host() },
        SourceError::TokenRefused { host: host() },
        SourceError::NotAllowed { host: host(), who: String::new(), namespace: String::new() },
        SourceError::AgentFails { host: host(), what: String::new() },
        SourceError::MetricFails { metric: String::new(), what: String::new() },
        SourceError::Limited { what: String::new() },
        SourceError::Upstream { host: host(), what: String::new() },
        SourceError::NotReady { metric: String::new() },
        SourceError::Unusable { metric: String::new(), reason: String::new() },
    ];
    for outcome in outcomes.iter().map(SourceError::outcome).chain(["ok"]) {
        assert!(readme.contains(&format!("`{outcome}`")), "{outcome} is not in the README");
    }
}

#[test]
fn a_framework_is_named_in_its_home_only() {
    let homes = [
        ("tonic::", &["check", "scaler", "serve", "proto"][..]),
        ("reqwest::", &["http"]),
        ("axum::", &["admin", "sandbox"]),
        ("maud::", &["admin", "sandbox"]),
        ("clap::", &["cli", "main"]),
        ("kube::", &["kubernetes"]),
        ("k8s_openapi::", &["kubernetes"]),
    ];
    let source = repository().join("src");
    for path in rust_files(&source) {
        let text = fs::read_to_string(&path).unwrap();
        let relative = path.strip_prefix(&source).unwrap();
        let module = relative.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs");
        for (framework, modules) in homes {
            let is_at_home = modules.contains(&module);
            assert!(
                is_at_home || !text.contains(framework),
                "{} names {framework}",
                relative.display()
            );
        }
    }
}

#[test]
fn the_readme_knows_every_code() {
    let readme = read("README.md");
    let status = read("src/scaler/status.rs");
    let table = status.split_once("fn code(&self)").unwrap().1.split_once("\n    }\n").unwrap().0;
    let mut codes: Vec<&str> =
        table.split("Code::").skip(1).map(|c| c.split([',', ' ', '\n']).next().unwrap()).collect();
    codes.sort_unstable();
    codes.dedup();
    assert!(codes.len() > 6, "{codes:?}");
    for code in codes {
        let mut name = String::new();
        for c in code.chars() {
            if c.is_ascii_uppercase() && !name.is_empty() {
                name.push('_');
            }
            name.push(c.to_ascii_uppercase());
        }
        assert!(readme.contains(&format!("| `{name}` |")), "{name} is not in the README");
    }
}

#[test]
fn the_deployment_uses_only_flags_that_exist() {
    for path in ["deploy/install.yaml", "deploy/install-namespaced.yaml"] {
        let documents = documents(path);
        let deployment = documents.iter().find(|it| it["kind"] == "Deployment").unwrap();
        let container = &deployment["spec"]["template"]["spec"]["containers"][0];
        let arguments = container["args"].as_array().unwrap().iter();
        let mut called = vec!["keda-datadog-scaler".to_owned()];
        called.extend(arguments.map(|text| text.as_str().unwrap().to_owned()));
        let command = Cli::command();
        let serve = command.find_subcommand("serve").unwrap();
        for variable in container["env"].as_array().unwrap() {
            let name = variable["name"].as_str().unwrap();
            let flag = serve.get_arguments().find(|it| it.get_env() == Some(OsStr::new(name)));
            let flag = flag.unwrap_or_else(|| panic!("{name} is of no flag")).get_long().unwrap();
            called.push(format!("--{flag}={}", variable["value"].as_str().unwrap()));
        }
        let command = Cli::try_parse_from(called).unwrap().command;
        assert!(matches!(command, Command::Serve(_)), "{path}");
    }
}

/// A release finds out too late: its tag is there by then.
#[test]
fn the_chart_has_the_version_of_the_program() {
    let chart = read("deploy/chart/keda-datadog-scaler/Chart.yaml");
    for key in ["version", "appVersion"] {
        let line = format!("\n{key}: {}\n", env!("CARGO_PKG_VERSION"));
        assert!(chart.contains(&line), "{key}");
    }
}

/// What the chart has no value of its own for can be set by `extraArgs`, and nothing else.
#[test]
fn the_chart_knows_every_flag() {
    let schema: Value =
        serde_json::from_str(&read("deploy/chart/keda-datadog-scaler/values.schema.json")).unwrap();
    let extra = schema["properties"]["extraArgs"]["propertyNames"]["enum"].as_array().unwrap();
    let extra: Vec<&str> = extra.iter().map(|flag| flag.as_str().unwrap()).collect();
    let template = read("deploy/chart/keda-datadog-scaler/templates/_helpers.tpl");
    let command = Cli::command();
    let serve = command.find_subcommand("serve").unwrap();
    for argument in serve.get_arguments() {
        let Some(flag) = argument.get_long() else { continue };
        // What the ports, the probes and the Service go by.
        let is_fixed = ["listen", "admin-listen", "help"].contains(&flag);
        let is_set = template.contains(&format!("set $flags \"{flag}\" "));
        let ways = [is_fixed, is_set, extra.contains(&flag)].map(usize::from);
        assert_eq!(ways.iter().sum::<usize>(), 1, "{flag}: {ways:?}");
        // As the template makes the one of the other.
        let variable = format!("SCALER_{}", flag.to_uppercase().replace('-', "_"));
        assert!(flag == "help" || argument.get_env() == Some(OsStr::new(&variable)), "{flag}");
    }
    for flag in extra {
        assert!(serve.get_arguments().any(|argument| argument.get_long() == Some(flag)), "{flag}");
    }
}

/// With the names of their files.
fn objects_of_examples() -> Vec<(String, Value)> {
    let of_file = |path: PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        documents(path.to_str().unwrap()).into_iter().map(move |object| (name.clone(), object))
    };
    examples().into_iter().flat_map(of_file).collect()
}

#[test]
fn the_examples_are_sound_triggers() {
    let mut files = HashSet::new();
    for (file, object) in objects_of_examples() {
        let triggers = object["spec"]["triggers"].as_array().into_iter().flatten();
        for trigger in triggers {
            let metadata = trigger["metadata"].as_object().unwrap().iter();
            let metadata: HashMap<String, String> =
                metadata.map(|(key, text)| (key.clone(), text.as_str().unwrap().into())).collect();
            let (parsed, advice) = Trigger::parse(&metadata, true).unwrap();
            assert!(advice.is_empty(), "{file}: {advice:?}");
            // As "Choosing a query" in the README has it.
            for query in metadata.get("query").into_iter().flat_map(|query| split(query).unwrap()) {
                assert!(query.contains(".rollup("), "{file}: {query}");
            }
            match object["kind"].as_str().unwrap() {
                // It starts nothing for work already done.
                "ScaledJob" => assert_eq!(parsed.hold, Some(Duration::ZERO), "{file}"),
                _ if metadata.contains_key("query") => {
                    assert_eq!(parsed.reckoning.offset, PointOffset::Auto, "{file}");
                }
                _ => {}
            }
            files.insert(file.clone());
        }
    }
    assert_eq!(files.len(), examples().len(), "one has no trigger: {files:?}");
}

#[test]
fn all_examples_can_be_applied_together() {
    let mut names = HashSet::new();
    // KEDA refuses a second ScaledObject for one workload.
    let mut targets = HashSet::new();
    for (file, object) in objects_of_examples() {
        let name = |of: &Value| of["name"].as_str().map(ToOwned::to_owned);
        let kind = object["kind"].as_str().unwrap().to_owned();
        let is_new = names.insert((kind, name(&object["metadata"]).unwrap()));
        assert!(is_new, "{file} has a {} of a name that another has", object["kind"]);
        if let Some(target) = name(&object["spec"]["scaleTargetRef"]) {
            assert!(targets.insert(target.clone()), "{file} scales {target}, as another does");
        }
    }
}

#[test]
fn the_readme_knows_every_example() {
    let readme = read("README.md");
    for example in examples() {
        let name = example.file_name().unwrap().to_str().unwrap();
        let row = format!("| [`{name}`](deploy/examples/{name}) | ");
        assert!(readme.contains(&row), "{name} is not in the README");
    }
}

#[test]
fn there_is_one_tls_stack_and_one_of_each_http_crate() {
    let lock = read("Cargo.lock");
    let versions = |name: &str| lock.matches(&format!("\nname = \"{name}\"\n")).count();
    for unwanted in ["openssl-sys", "native-tls", "aws-lc-sys", "aws-lc-rs"] {
        assert_eq!(versions(unwanted), 0, "{unwanted} came in");
    }
    for single in ["hyper", "h2", "http", "rustls", "tonic", "prost", "axum"] {
        assert_eq!(versions(single), 1, "{single} is there more or less than once");
    }
}
