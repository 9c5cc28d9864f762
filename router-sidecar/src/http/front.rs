//! The way of most requests: a plain `GET` of a key, whose owner can be asked at once and answers.
//!
//! They go by the routes, which cost more than all the rest that a router does for a hit. Whatever is not as simple takes the
//! routes, or, where the owner's answer is not the end, goes on as a read that went there would.

use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use actix_http::Request;
use actix_service::IntoServiceFactory;
use actix_web::Error;
use actix_web::body::BoxBody;
use actix_web::dev::{AppConfig, RequestHead, Response, Service, ServiceFactory, ServiceResponse};
use actix_web::http::Method;
use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use sharding::wire::AnswerBody;
use tokio::time::Instant;

use super::target::plain;
use super::{HttpState, entries};
use crate::forward::{Begun, ForwardError};
use crate::map_watch::View;

/// Puts the short way before the routes of `app`.
pub(crate) fn front<A, F>(app: A, state: Rc<HttpState>) -> Front<F>
where
    A: IntoServiceFactory<F, Request>,
    F: ServiceFactory<Request>,
{
    Front { app: app.into_factory(), state }
}

/// Makes the [`FrontService`] of a thread.
pub(crate) struct Front<F> {
    app: F,
    state: Rc<HttpState>,
}

/// Answers requests, some of them itself.
pub(crate) struct FrontService<S> {
    app: S,
    state: Rc<HttpState>,
}

type Answer = Result<Response<BoxBody>, Error>;

impl<F> ServiceFactory<Request> for Front<F>
where
    F: ServiceFactory<Request, Config = AppConfig, Response = ServiceResponse<BoxBody>, Error = Error>,
    F::Future: 'static,
    <F::Service as Service<Request>>::Future: 'static,
{
    type Response = Response<BoxBody>;
    type Error = Error;
    type Config = AppConfig;
    type Service = FrontService<F::Service>;
    type InitError = F::InitError;
    type Future = LocalBoxFuture<'static, Result<Self::Service, F::InitError>>;

    fn new_service(&self, config: AppConfig) -> Self::Future {
        let (app, state) = (self.app.new_service(config), Rc::clone(&self.state));
        Box::pin(async move { Ok(FrontService { app: app.await?, state }) })
    }
}

impl<S> Service<Request> for FrontService<S>
where
    S: Service<Request, Response = ServiceResponse<BoxBody>, Error = Error>,
    S::Future: 'static,
{
    type Response = Response<BoxBody>;
    type Error = Error;
    type Future = Answering;

    fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.app.poll_ready(cx)
    }

    fn call(&self, request: Request) -> Answering {
        match Read::begin(request, &self.state) {
            Ok(read) => Answering { read: Some(read), other: None },
            Err(request) => {
                let answer = self.app.call(request);
                let other: LocalBoxFuture<'static, Answer> = Box::pin(async move { answer.await.map(Response::from) });
                Answering { read: None, other: Some(other) }
            }
        }
    }
}

/// A read whose owner was asked at once.
pub(crate) struct Read {
    request: Request,
    state: Rc<HttpState>,
    begun: Begun,
    /// Position of the region.
    region: usize,
    started: Instant,
}

impl Read {
    /// Gives the request back if it is not as simple.
    fn begin(request: Request, state: &Rc<HttpState>) -> Result<Self, Request> {
        let begin = || {
            let started = Instant::now();
            let (region, key) = plain(request.path())?;
            let view = state.forwarder.watch.view()?;
            let region = view.position(region)?;
            let left = state.forwarder.request_timeout;
            Some((state.forwarder.begin(&view, &view.regions[region].name, key, left)?, region, started))
        };
        match *request.method() {
            Method::GET | Method::HEAD => match begin() {
                Some((begun, region, started)) => Ok(Self { state: Rc::clone(state), begun, region, started, request }),
                None => Err(request),
            },
            _ => Err(request),
        }
    }

    fn end(self, answer: Result<AnswerBody, ForwardError>) -> Response<BoxBody> {
        let Self { request, state, begun, region, started } = self;
        answer_read(&state, request.head(), (begun.view(), region), started, answer)
    }

    /// The owner's answer is not the end of it.
    async fn go_on(self) -> Answer {
        let Self { request, state, begun, region, started } = self;
        let view = Arc::clone(begun.view());
        let key = plain(request.path()).map_or_else(Bytes::new, |(_, key)| Bytes::copy_from_slice(key));
        let answer = state.forwarder.go_on(Some(begun), &view.regions[region].name, key, started).await;
        Ok(answer_read(&state, request.head(), (&view, region), started, answer))
    }
}

fn answer_read(
    state: &HttpState,
    request: &RequestHead,
    (view, region): (&View, usize),
    started: Instant,
    answer: Result<AnswerBody, ForwardError>,
) -> Response<BoxBody> {
    let answer = entries::answered(request, state, &view.heads[region], answer);
    let response = answer.unwrap_or_else(|problem| problem.answer(request));
    state.end(request, Some(view.regions[region].name.as_str()), started, response).into()
}

/// What becomes of a request: first a read, perhaps, and then what else there is to be waited for.
pub(crate) struct Answering {
    read: Option<Read>,
    other: Option<LocalBoxFuture<'static, Answer>>,
}

impl Future for Answering {
    type Output = Answer;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer> {
        if let Some(read) = &mut self.read {
            let answer = ready!(read.begun.poll_answer(cx));
            let read = self.read.take().expect("it was there just now");
            match answer {
                Some(answer) => return Poll::Ready(Ok(read.end(Ok(answer)))),
                None => self.other = Some(Box::pin(read.go_on())),
            }
        }
        self.other.as_mut().expect("it is polled until it has answered").as_mut().poll(cx)
    }
}

#[cfg(test)]
mod tests;
