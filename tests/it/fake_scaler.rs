//! Another's external scaler, which answers and remembers.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
};

use futures_util::{Stream, stream};
use keda_datadog_scaler::proto::{
    GetMetricSpecResponse, GetMetricsRequest, GetMetricsResponse, IsActiveResponse, MetricSpec,
    MetricValue, ScaledObjectRef,
    external_scaler_server::{ExternalScaler, ExternalScalerServer},
};
use tokio::{net::TcpListener, task::JoinSet};
use tonic::{
    Request, Response, Status,
    transport::{Server as GrpcServer, server::TcpIncoming},
};

/// Another's external scaler, which remembers what it was asked.
#[derive(Clone, Default)]
pub(crate) struct FakeScaler {
    pub(crate) asked: Arc<Mutex<Vec<(&'static str, ScaledObjectRef)>>>,
    /// What GetMetrics answers; `None` is an error.
    pub(crate) values: Option<Vec<MetricValue>>,
    /// After so many answers, it fails.
    pub(crate) fails_after: Option<usize>,
    /// What GetMetricSpec answers; one spec with a target of 2.5 if there is nothing here.
    pub(crate) specs: Option<Vec<MetricSpec>>,
}

impl FakeScaler {
    pub(crate) fn answering(values: &[(f64, i64)]) -> Self {
        let value = |(float, int): &(f64, i64)| MetricValue {
            metric_name: "m".into(),
            metric_value: *int,
            metric_value_float: *float,
        };
        Self { values: Some(values.iter().map(value).collect()), ..Self::default() }
    }

    fn note(&self, method: &'static str, object: ScaledObjectRef) {
        self.asked.lock().unwrap().push((method, object));
    }

    pub(crate) fn methods(&self) -> Vec<&'static str> {
        self.asked.lock().unwrap().iter().map(|(method, _)| *method).collect()
    }

    pub(crate) async fn start(&self) -> (SocketAddr, JoinSet<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        (listener.local_addr().unwrap(), self.serve(listener))
    }

    pub(crate) async fn start_at(&self, address: SocketAddr) -> JoinSet<()> {
        self.serve(TcpListener::bind(address).await.unwrap())
    }

    fn serve(&self, listener: TcpListener) -> JoinSet<()> {
        let service = ExternalScalerServer::new(self.clone());
        let mut server = JoinSet::new();
        server.spawn(async move {
            let incoming = TcpIncoming::from(listener);
            GrpcServer::builder().add_service(service).serve_with_incoming(incoming).await.unwrap();
        });
        server
    }
}

pub(crate) fn spec(target: f64) -> MetricSpec {
    MetricSpec { metric_name: "m".into(), target_size: 0, target_size_float: target }
}

type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl ExternalScaler for FakeScaler {
    type StreamIsActiveStream = Messages<IsActiveResponse>;
    type StreamMetricSpecStream = Messages<GetMetricSpecResponse>;

    async fn is_active(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<IsActiveResponse>, Status> {
        self.note("IsActive", request.into_inner());
        Ok(Response::new(IsActiveResponse { result: true }))
    }

    async fn stream_is_active(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<Self::StreamIsActiveStream>, Status> {
        self.note("StreamIsActive", request.into_inner());
        Ok(Response::new(Box::pin(stream::pending())))
    }

    async fn get_metric_spec(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<GetMetricSpecResponse>, Status> {
        self.note("GetMetricSpec", request.into_inner());
        let metric_specs = self.specs.clone().unwrap_or_else(|| vec![spec(2.5)]);
        Ok(Response::new(GetMetricSpecResponse { metric_specs }))
    }

    async fn stream_metric_spec(
        &self,
        _request: Request<ScaledObjectRef>,
    ) -> Result<Response<Self::StreamMetricSpecStream>, Status> {
        Err(Status::unimplemented("no"))
    }

    async fn get_metrics(
        &self,
        request: Request<GetMetricsRequest>,
    ) -> Result<Response<GetMetricsResponse>, Status> {
        let request = request.into_inner();
        assert_eq!(request.metric_name, "m");
        self.note("GetMetrics", request.scaled_object_ref.unwrap());
        let answered = self.methods().iter().filter(|method| **method == "GetMetrics").count();
        let fails = self.fails_after.is_some_and(|most| answered > most);
        match self.values.clone().filter(|_| !fails) {
            Some(metric_values) => Ok(Response::new(GetMetricsResponse { metric_values })),
            None => Err(Status::unavailable("the database is away\u{1b}[31m")),
        }
    }
}
