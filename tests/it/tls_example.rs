//! `deploy/tls-patch.yaml` and `deploy/examples/tls.yaml` together: KEDA reaches the scaler.

use std::collections::{BTreeMap, HashMap};

use clap::{CommandFactory as _, Parser as _};
use keda_datadog_scaler::{
    cli::{Cli, Command, Environment},
    proto::{ScaledObjectRef, external_scaler_client::ExternalScalerClient},
    serve, tls,
};
use serde_json::Value;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Identity};

use crate::{
    authority::{Authority, Mounted},
    harness::{FakeDatadog, Keda, Reply, Server, config, repository, soon},
    tls::files,
};

fn documents(path: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(repository().join(path)).unwrap();
    serde_saphyr::from_multiple(&text).unwrap()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text"))
}

/// The member of a list that has this name.
fn named<'a>(list: &'a Value, name: &str) -> &'a Value {
    list.as_array().unwrap().iter().find(|member| member["name"] == name).unwrap()
}

/// What the patched Deployment makes of its environment, with this Secret in its volume.
fn patched(secret: &Mounted, secret_name: &str) -> tls::Config {
    let [patch] = &documents("deploy/tls-patch.yaml")[..] else { panic!("one document") };
    let pod = &patch["spec"]["template"]["spec"];
    assert_eq!(named(&pod["volumes"], "tls")["secret"]["secretName"], secret_name);
    let container = named(&pod["containers"], "scaler");
    let mounted_at = text(&named(&container["volumeMounts"], "tls")["mountPath"]);

    let command = Cli::command();
    let mut arguments = vec!["keda-datadog-scaler".to_owned(), "serve".to_owned()];
    for variable in container["env"].as_array().unwrap() {
        let name = text(&variable["name"]);
        let mut flags = command.find_subcommand("serve").unwrap().get_arguments();
        let flag = flags.find(|flag| flag.get_env().is_some_and(|env| env == name)).expect(name);
        let file = text(&variable["value"]).strip_prefix(mounted_at).expect("it is mounted");
        let file = secret.path(file.trim_start_matches('/'));
        arguments.extend([format!("--{}", flag.get_long().unwrap()), file.display().to_string()]);
    }
    let Command::Serve(serve) = Cli::parse_from(arguments).command else { panic!("it is `serve`") };
    serve.config(Environment::read(|_| None)).unwrap().tls.unwrap()
}

#[tokio::test]
async fn keda_reaches_the_scaler_by_the_example() {
    let [authentication, object] = &documents("deploy/examples/tls.yaml")[..] else {
        panic!("two documents")
    };
    let trigger = &object["spec"]["triggers"][0];
    let reference = &trigger["authenticationRef"];
    assert_eq!(reference["kind"], authentication["kind"]);
    assert_eq!(reference["name"], authentication["metadata"]["name"]);
    let address = text(&trigger["metadata"]["scalerAddress"]);
    let (host, _) = address.split_once(':').unwrap();

    // The two Secrets.
    let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
    let (server, client) = (servers.issue(host), clients.issue("keda"));
    let (ca_of_clients, ca_of_servers) = (clients.pem(), servers.pem());
    let secret = Mounted::new(&files(&server, &ca_of_clients));
    let of_keda: HashMap<&str, &str> = files(&client, &ca_of_servers).into();

    let datadog = FakeDatadog::start(|_| Reply::points(&[8.0])).await;
    let tls = patched(&secret, "keda-datadog-scaler-tls");
    assert!(tls.client_ca.is_some());
    let server = Server::start_with(serve::Config { tls: Some(tls), ..config(&datadog.url) }).await;

    // As KEDA's resolver and `getClientForConnectionPool` have it (pkg/scalers/external_scaler.go).
    let targets = authentication["spec"]["secretTargetRef"].as_array().unwrap();
    let parameters: BTreeMap<&str, &str> = targets
        .iter()
        .map(|target| {
            assert_eq!(target["name"], "keda-datadog-scaler-client");
            (text(&target["parameter"]), of_keda[text(&target["key"])])
        })
        .collect();
    assert_eq!(trigger["metadata"]["enableTLS"], "true");
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(parameters["caCert"]))
        .identity(Identity::from_pem(parameters["tlsClientCert"], parameters["tlsClientKey"]))
        .domain_name(host);
    let endpoint = Channel::from_shared(server.grpc.replace("http:", "https:")).unwrap();
    let channel = soon(endpoint.tls_config(tls).unwrap().connect()).await.unwrap();
    let mut keda = Keda { client: ExternalScalerClient::new(channel) };

    let metadata = trigger["metadata"].as_object().unwrap();
    let request = ScaledObjectRef {
        name: text(&object["metadata"]["name"]).to_owned(),
        namespace: text(&object["metadata"]["namespace"]).to_owned(),
        scaler_metadata: metadata.iter().map(|(k, v)| (k.clone(), text(v).to_owned())).collect(),
    };
    assert_eq!(keda.value(&request).await.unwrap(), 8.0);
}
