//! How many requests are under way: each takes some kilobytes until its answer has been taken, and a
//! connection carries as many as its client likes.

use std::{
    convert::Infallible,
    future::ready,
    net::IpAddr,
    task::{Context, Poll},
};

use http_body_util::BodyExt as _;
use tonic::{
    Status,
    body::Body,
    codegen::{
        BoxFuture, Service,
        http::{Request, Response},
    },
    service::Routes,
};

use super::places::Places;

/// Whose connection a request came by.
#[derive(Clone, Copy)]
pub(super) struct Peer(pub(super) IpAddr);

/// Answers, or refuses for want of a place.
#[derive(Clone)]
pub(super) struct Requests {
    routes: Routes,
    places: Places,
}

impl Requests {
    pub(super) fn new(routes: Routes, places: Places) -> Self {
        Self { routes: routes.prepare(), places }
    }
}

impl Service<Request<Body>> for Requests {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Response<Body>, Infallible>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Service::<Request<Body>>::poll_ready(&mut self.routes, cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Peer(address) = *request.extensions().get().expect("tonic tells it of each request");
        let place = match self.places.take(address) {
            Ok(place) => place,
            Err(full) => {
                full.tell("there are too many requests at once; further ones are refused");
                let message = format!("there are {} requests under way already", full.most);
                return Box::pin(ready(Ok(Status::resource_exhausted(message).into_http())));
            }
        };
        let answered = self.routes.call(request);
        Box::pin(async move {
            let answer = answered.await?;
            Ok(answer.map(|body| {
                Body::new(body.map_frame(move |frame| {
                    // It lasts as long as the body.
                    let _held = &place;
                    frame
                }))
            }))
        })
    }
}
