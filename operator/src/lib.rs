//! Turns `ImageCache` resources into what each node should hold, and tells how it went.
