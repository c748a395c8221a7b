//! One `ImageCache`, from what a user wrote to what nodes and the cache are asked for.
//!
//! The steps are pure: the clock, the nodes and the cache's answers are arguments.
//!
//! | Step | Signature |
//! |---|---|
//! | dereference | [`dereference::NodeFacts::new`]`(&Node, Option<Arc<Stored>>, before, uptime)`, [`dereference::Surroundings`] |
//! | validate | [`validate::validate`]`(&ImageCache) -> Result<ValidatedImageCache, Invalid>` |
//! | pods | [`pods::join`]`(&mut ValidatedImageCache, &[&Pod], &mut Seen, Option<&ImageCacheStatus>, uptime)` |
//! | refresh | [`refresh::due`]`(&ValidatedImageCache, Option<&ImageCacheStatus>, default_interval, now) -> Due` |
//! | assign | [`assign::assign`]`(&ValidatedImageCache, &Surroundings, &Slots) -> Assignment` |
//! | build | [`build::build`]`(&ValidatedImageCache, &Assignment, &Surroundings, &Due) -> Resources<Prepared>` |
//! | apply | writes it, and calls [`resources::Resources::applied`] |
//! | status | [`status::status`]`(&Outcome) -> ImageCacheStatus`, with the `Resources<Applied>` in it |
//!
//! Beside them: [`window`] says when something new is granted, [`secrets`] which logins are lent to the registry,
//! [`finalizer`] when an object that purges may go, and [`waiting`] tells in words what each image waits for on each node.

pub mod apply;
pub mod assign;
pub mod build;
pub mod dereference;
pub mod finalizer;
pub mod pods;
pub mod refresh;
pub mod resources;
pub mod secrets;
pub mod served;
pub mod status;
pub mod target;
pub mod validate;
pub mod waiting;
pub mod window;
