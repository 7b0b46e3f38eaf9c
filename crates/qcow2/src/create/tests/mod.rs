mod cut;
mod layouts;
