use std::{future::ready, pin::pin, time::Duration};

use futures_util::{Stream, StreamExt as _};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Secret},
};
use kube::{
    Api, Client, ResourceExt as _,
    api::ListParams,
    core::{ApiResource, DynamicObject, GroupVersionKind, NotUsed, Object},
    discovery,
    runtime::watcher::{self, Config, watcher},
};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::{FakeKubernetes, Gone, TOKEN, Trouble};
use crate::harness::soon;

type ScaledObject = Object<Value, NotUsed>;

fn scaled_object(name: &str, least: u64) -> Value {
    json!({
        "apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject",
        "metadata": {"namespace": "shop", "name": name},
        "spec": {"minReplicaCount": least},
    })
}

fn scaled_objects(client: Client) -> Api<ScaledObject> {
    let kind = GroupVersionKind::gvk("keda.sh", "v1alpha1", "ScaledObject");
    Api::all_with(client, &ApiResource::from_gvk(&kind))
}

/// What a watcher says, one word for each event and one for each failure.
fn said(client: Client, config: Config) -> impl Stream<Item = String> {
    watcher(scaled_objects(client), config).map(|event| match event {
        Ok(event) => event.to_string(),
        Err(watcher::Error::InitialListFailed(error)) => format!("no list: {error}"),
        Err(watcher::Error::WatchStartFailed(error)) => format!("no watch: {error}"),
        Err(error) => format!("watch: {error}"),
    })
}

async fn next<const N: usize>(said: &mut (impl Stream<Item = String> + Unpin)) -> [String; N] {
    let words: Vec<String> = soon(said.by_ref().take(N).collect()).await;
    words.try_into().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_watcher_gets_a_list_in_pages_and_every_change_in_order() {
    let kubernetes = FakeKubernetes::new();
    for name in ["a", "b", "c", "d", "e"] {
        kubernetes.apply(scaled_object(name, 0));
    }
    let mut said = pin!(said(kubernetes.client(), Config::default().page_size(2)));
    let list: [String; 7] = next(&mut said).await;
    let expected = ["InitApply(a)", "InitApply(b)", "InitApply(c)", "InitApply(d)", "InitApply(e)"];
    assert_eq!(
        (&*list[0], &list[1..6], &*list[6]),
        ("Init", &expected.map(String::from)[..], "InitDone")
    );
    // Before the watch begins, and after.
    kubernetes.apply(scaled_object("f", 0));
    assert_eq!(next(&mut said).await, ["Apply(f)"]);
    kubernetes.apply(scaled_object("f", 1));
    kubernetes.apply(scaled_object("f", 1));
    kubernetes.delete("scaledobjects", "shop", "f");
    assert_eq!(next(&mut said).await, ["Apply(f)", "Delete(f)"]);
    assert_eq!(kubernetes.times_asked("list", "scaledobjects"), 3);
    assert_eq!(kubernetes.times_asked("watch", "scaledobjects"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_streaming_list_is_one_watch_and_a_bookmark_is_where_the_next_begins() {
    let kubernetes = FakeKubernetes::new();
    kubernetes.apply(scaled_object("a", 0));
    let mut said = pin!(said(kubernetes.client(), Config::default().streaming_lists()));
    assert_eq!(next(&mut said).await, ["Init", "InitApply(a)", "InitDone"]);
    assert_eq!(kubernetes.times_asked("list", "scaledobjects"), 0);
    kubernetes.bookmark();
    assert!(timeout(Duration::from_secs(1), said.next()).await.is_err());
    kubernetes.cut_watches();
    assert!(timeout(Duration::from_secs(1), said.next()).await.is_err());
    assert_eq!(kubernetes.asked().last().unwrap().query["resourceVersion"], "102");
    assert_eq!(kubernetes.open_watches(), 1);
    kubernetes.apply(scaled_object("b", 0));
    assert_eq!(next(&mut said).await, ["Apply(b)"]);
}

#[tokio::test(start_paused = true)]
async fn a_watch_ends_after_the_time_it_asked_for_and_nothing_is_lost() {
    let kubernetes = FakeKubernetes::new();
    let mut said = pin!(said(kubernetes.client(), Config::default()));
    assert_eq!(next(&mut said).await, ["Init", "InitDone"]);
    assert!(timeout(Duration::from_mins(10), said.next()).await.is_err());
    let asked = kubernetes.asked();
    let [_, first, second, third] = &*asked else { panic!("not three watches: {asked:?}") };
    assert_eq!((second.at - first.at).as_secs(), 290);
    assert_eq!((third.at - second.at).as_secs(), 290);
    kubernetes.cut_watches();
    kubernetes.apply(scaled_object("a", 0));
    assert_eq!(next(&mut said).await, ["Apply(a)"]);
}

#[tokio::test(start_paused = true)]
async fn a_forgotten_version_leads_to_a_new_list() {
    let kubernetes = FakeKubernetes::new();
    kubernetes.apply(scaled_object("a", 0));
    let mut said = pin!(said(kubernetes.client(), Config::default()));
    assert_eq!(next(&mut said).await, ["Init", "InitApply(a)", "InitDone"]);
    assert!(timeout(Duration::from_secs(1), said.next()).await.is_err());
    kubernetes.delete("scaledobjects", "shop", "a");
    kubernetes.expire(Gone::Event);
    let [gone, init, done] = next(&mut said).await;
    assert!(gone.ends_with("during watch: too old resource version: 101 (103): Expired"), "{gone}");
    assert_eq!([init, done], ["Init", "InitDone"]);
}

#[tokio::test(start_paused = true)]
async fn a_list_that_is_forgotten_between_its_pages_begins_anew() {
    let kubernetes = FakeKubernetes::new();
    for name in ["a", "b"] {
        kubernetes.apply(scaled_object(name, 0));
    }
    let mut said = pin!(said(kubernetes.client(), Config::default().page_size(1)));
    assert_eq!(next(&mut said).await, ["Init", "InitApply(a)"]);
    kubernetes.expire(Gone::Event);
    let [gone] = next(&mut said).await;
    assert!(gone.starts_with("no list: ApiError: The provided continue parameter is too old"));
    let expected = ["Init", "InitApply(a)", "InitApply(b)", "InitDone"];
    assert_eq!(next(&mut said).await, expected);
}

/// client-go lists again.
#[tokio::test(start_paused = true)]
async fn a_watcher_that_is_told_so_by_the_status_asks_for_the_same_version_ever_after() {
    let kubernetes = FakeKubernetes::new();
    let mut said = pin!(said(kubernetes.client(), Config::default()));
    assert_eq!(next(&mut said).await, ["Init", "InitDone"]);
    kubernetes.expire(Gone::Status);
    let no = "no watch: ApiError: too old resource version: 100 (101): Expired";
    assert!(next::<9>(&mut said).await.iter().all(|said| said.starts_with(no)));
    assert_eq!(kubernetes.times_asked("list", "scaledobjects"), 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_forbidden_is_told_as_rbac_tells_it() {
    let kubernetes = FakeKubernetes::new();
    kubernetes.forbid_in("shop", "get", "secrets");
    kubernetes.forbid("list", "scaledobjects");
    kubernetes.allow_in("shop", "list", "scaledobjects");
    let client = kubernetes.client();
    let error = Api::<Secret>::namespaced(client.clone(), "shop").get("keys").await.unwrap_err();
    let kube::Error::Api(status) = error else { panic!("not a status: {error}") };
    assert!(status.is_forbidden() && status.details.unwrap().kind == "secrets");
    assert_eq!(
        status.message,
        "secrets \"keys\" is forbidden: User \"system:serviceaccount:keda:keda-datadog-scaler\" \
         cannot get resource \"secrets\" in API group \"\" in the namespace \"shop\""
    );
    let error = Api::<Secret>::namespaced(client.clone(), "bank").get("keys").await.unwrap_err();
    let kube::Error::Api(status) = error else { panic!("not a status: {error}") };
    assert!(status.is_not_found());
    assert_eq!(status.message, "secrets \"keys\" not found");

    let mut said = pin!(said(client.clone(), Config::default()));
    let expected = "no list: ApiError: scaledobjects.keda.sh is forbidden: User \
                    \"system:serviceaccount:keda:keda-datadog-scaler\" cannot list resource \
                    \"scaledobjects\" in API group \"keda.sh\" at the cluster scope: Forbidden";
    assert!(next::<2>(&mut said).await[1].starts_with(expected));
    let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("keda.sh", "v1alpha1", "ScaledObject"));
    let of_shop: Api<ScaledObject> = Api::namespaced_with(client, "shop", &kind);
    of_shop.list(&ListParams::default()).await.unwrap();
    kubernetes.allow("*", "scaledobjects");
    assert_eq!(next(&mut said).await, ["Init", "InitDone"]);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_hangs_comes_when_it_recovers() {
    let kubernetes = FakeKubernetes::new();
    kubernetes.apply(json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": {"namespace": "shop", "name": "keys"}, "stringData": {"api": "secret"},
    }));
    let secrets = Api::<Secret>::namespaced(kubernetes.client(), "shop");
    let mut said = pin!(said(kubernetes.client(), Config::default()));
    assert_eq!(next(&mut said).await, ["Init", "InitDone"]);
    assert!(timeout(Duration::from_secs(1), said.next()).await.is_err());
    kubernetes.hang();
    kubernetes.apply(scaled_object("a", 0));
    assert!(timeout(Duration::from_secs(9), said.next()).await.is_err());
    let (secret, ()) = tokio::join!(secrets.get("keys"), async {
        sleep(Duration::from_secs(9)).await;
        kubernetes.recover();
    });
    assert_eq!(secret.unwrap().data.unwrap()["api"].0, b"secret");
    assert_eq!(next(&mut said).await, ["Apply(a)"]);
}

#[tokio::test(start_paused = true)]
async fn what_fails_fails_for_all_or_for_one_resource() {
    let kubernetes = FakeKubernetes::new();
    let mut said = pin!(said(kubernetes.client(), Config::default()));
    assert_eq!(next(&mut said).await, ["Init", "InitDone"]);
    kubernetes.trouble("secrets", Trouble::Fails(500));
    kubernetes.apply(scaled_object("a", 0));
    assert_eq!(next(&mut said).await, ["Apply(a)"]);
    let secrets = Api::<Secret>::namespaced(kubernetes.client(), "shop");
    let error = secrets.get("keys").await.unwrap_err();
    let kube::Error::Api(status) = error else { panic!("not a status: {error}") };
    assert_eq!((status.code, &*status.reason), (500, "InternalError"));

    kubernetes.fail(429);
    let [no] = next(&mut said).await;
    assert!(no.starts_with("no watch: ApiError: Too many requests"), "{no}");
    kubernetes.garbage("<html>a portal</html>");
    let error = secrets.get("keys").await.unwrap_err();
    assert!(matches!(error, kube::Error::SerdeError(_)), "{error}");
    kubernetes.recover();
    assert!(secrets.get_opt("keys").await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn any_kind_is_found_by_discovery() {
    let kubernetes = FakeKubernetes::new();
    let client = kubernetes.client();
    let rollout = GroupVersionKind::gvk("argoproj.io", "v1alpha1", "Rollout");
    let error = discovery::pinned_kind(&client, &rollout).await.unwrap_err();
    let kube::Error::Api(status) = error else { panic!("not a status: {error}") };
    assert_eq!((status.code, &*status.message), (404, "404 page not found"));
    kubernetes.apply(json!({
        "apiVersion": "argoproj.io/v1alpha1", "kind": "Rollout",
        "metadata": {"namespace": "shop", "name": "web"}, "spec": {"replicas": 1},
    }));
    let (kind, _) = discovery::pinned_kind(&client, &rollout).await.unwrap();
    let rollouts: Api<DynamicObject> = Api::namespaced_with(client.clone(), "shop", &kind);
    assert_eq!(rollouts.get("web").await.unwrap().data["spec"]["replicas"], 1);
    let deployment = GroupVersionKind::gvk("apps", "v1", "Deployment");
    let (kind, _) = discovery::pinned_kind(&client, &deployment).await.unwrap();
    assert_eq!(kind.plural, "deployments");
    assert_eq!(client.apiserver_version().await.unwrap().minor, "34");
}

#[tokio::test(start_paused = true)]
async fn a_group_that_is_uninstalled_is_unknown_until_it_is_installed() {
    let kubernetes = FakeKubernetes::new();
    kubernetes.apply(scaled_object("a", 0));
    let mut said = pin!(said(kubernetes.client(), Config::default()));
    assert_eq!(next(&mut said).await, ["Init", "InitApply(a)", "InitDone"]);
    assert!(timeout(Duration::from_secs(1), said.next()).await.is_err());
    kubernetes.uninstall("keda.sh");
    let [delete, no] = next(&mut said).await;
    assert_eq!(delete, "Delete(a)");
    assert!(no.starts_with("no watch: ApiError: 404 page not found"), "{no}");
    kubernetes.install("keda.sh/v1alpha1", "ScaledObject", "scaledobjects", true);
    kubernetes.apply(scaled_object("b", 0));
    assert_eq!(next(&mut said).await, ["Apply(b)"]);
}

#[tokio::test]
async fn on_a_socket_it_is_met_as_the_kubeconfig_says() {
    let kubernetes = FakeKubernetes::new();
    kubernetes.apply(json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "site"}, "data": {"host": "dd"},
    }));
    let listening = kubernetes.listen().await;
    let client = soon(listening.client()).await;
    let maps = Api::<ConfigMap>::namespaced(client.clone(), "default");
    let list = soon(maps.list(&ListParams::default())).await.unwrap();
    assert_eq!(list.items[0].name_any(), "site");
    assert_eq!(kubernetes.asked()[0].bearer.as_deref(), Some(TOKEN));
    let deployments = Api::<Deployment>::namespaced(client.clone(), "shop");
    assert!(soon(deployments.get_opt("web")).await.unwrap().is_none());

    let mut said = pin!(said(client, Config::default()));
    assert_eq!(next(&mut said).await, ["Init", "InitDone"]);
    kubernetes.apply(scaled_object("a", 0));
    assert_eq!(next(&mut said).await, ["Apply(a)"]);
    let address = listening.address;
    drop(listening);
    let [no] = next(&mut said).await;
    assert!(no.starts_with("no watch: "), "{no}");
    kubernetes.apply(scaled_object("b", 0));
    let _listening = kubernetes.listen_at(address).await;
    let mut words = said.skip_while(|said| ready(said.starts_with("no watch")));
    assert_eq!(soon(words.next()).await.as_deref(), Some("Apply(b)"));
}

#[tokio::test]
async fn on_a_socket_the_client_of_kube_asks_again_by_itself() {
    let kubernetes = FakeKubernetes::new();
    let listening = kubernetes.listen().await;
    let client = soon(listening.client()).await;
    kubernetes.fail(503);
    let secrets = Api::<Secret>::namespaced(client, "shop");
    let (secret, ()) = tokio::join!(secrets.get_opt("keys"), async {
        kubernetes.was_asked("get", "secrets", 3).await;
        kubernetes.recover();
    });
    assert!(secret.unwrap().is_none());
}
