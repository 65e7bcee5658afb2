use proc_macro2::TokenStream;
use quote::quote;

use crate::plugin_or_error;

/// What the compiler would say; nothing if the macro takes it.
fn errors(attribute: TokenStream, item: TokenStream) -> String {
    let expanded = plugin_or_error(attribute, item);
    let file: syn::File = syn::parse2(expanded).expect("the expansion is always valid syntax");
    let errors = file.items.iter().filter_map(|item| match item {
        syn::Item::Macro(item) => Some(item.mac.tokens.to_string()),
        _ => None,
    });
    errors.collect()
}

fn method_errors(method: TokenStream) -> String {
    errors(quote!(name = "lamp"), quote!(impl Lamp { #method }))
}

#[test]
fn everything_that_the_documentation_shows_is_taken() {
    let item = quote! {
        /// A lamp.
        impl Lamp {
            /// Switch one lamp on.
            #[service(idempotent, read_only, name = "on", timeout = secs(5), deprecated = "x")]
            async fn turn_on(&self, ctx: &Ctx, device_id: String, level: Option<u8>) -> Result<u8> { Ok(1) }
            #[service(full_name = "geo.lookup")]
            fn lookup(&self, #[args] place: Place) -> Result<Place> { Ok(place) }
            #[service]
            async fn apart(&self, Place { x, y }: Place) -> Result { Ok(()) }
            #[on("presence.left", "presence.>", source = "a", subject = "b", exclude_own, from_oldest, on_gap = missed)]
            async fn left(&self, ctx: &Ctx, event: Event) -> Result { Ok(()) }
            #[on("x")]
            async fn typed(&self, data: Presence) -> Result { Ok(()) }
            #[task]
            async fn poll(&self, ctx: Ctx) -> Result { Ok(()) }
            #[on_load]
            async fn open(&self, ctx: &Ctx) -> Result { Ok(()) }
            async fn missed(&self, ctx: &Ctx, gap: Gap) -> Result { Ok(()) }
            const PORT: u16 = 1;
        }
    };
    let attribute = quote!(
        name = "lamp",
        requires = ["devices"],
        permissions = ["publish=home.>"],
        config = Config,
        version = "1.0",
        description = "d",
        max_calls_in_flight = 8
    );
    assert_eq!(errors(attribute, item), "");
}

#[test]
fn a_name_is_needed_and_must_be_one() {
    let item = quote!(impl Lamp {});
    assert!(errors(quote!(), item.clone()).contains("needs a name"));
    for name in ["Lamp", "my.lamp", "core", ""] {
        let told = errors(quote!(name = #name), item.clone());
        assert!(told.contains("[a-z][a-z0-9_-]{0,47}"), "{name}: {told}");
    }
    assert!(errors(quote!(nam = "lamp"), item).contains("takes name, version"));
}

#[test]
fn the_attribute_stands_on_an_inherent_impl_of_a_concrete_type() {
    let name = quote!(name = "lamp");
    assert!(
        errors(
            name.clone(),
            quote!(
                struct Lamp;
            )
        )
        .contains("inherent impl")
    );
    assert!(
        errors(name.clone(), quote!(impl Clone for Lamp {})).contains("not on the impl of a trait")
    );
    assert!(
        errors(
            name,
            quote!(
                impl<T> Lamp<T> {}
            )
        )
        .contains("concrete type")
    );
}

#[test]
fn a_handler_that_cannot_work_is_refused_with_the_remedy() {
    for (method, remedy) in [
        (
            quote!(
                #[service]
                async fn f(&mut self) -> Result {}
            ),
            "Mutex",
        ),
        (
            quote!(
                #[service]
                async fn f() -> Result {}
            ),
            "`&self`",
        ),
        (
            quote!(
                #[service]
                async fn f(&self) {}
            ),
            "returns `Result`",
        ),
        (
            quote!(
                #[service]
                async fn f(&self, id: &str) -> Result {}
            ),
            "take `String`",
        ),
        (
            quote!(
                #[service]
                async fn f<T>(&self, id: T) -> Result {}
            ),
            "no generic",
        ),
        (
            quote!(
                #[service]
                async fn f(&self, id: u8, ctx: &Ctx) -> Result {}
            ),
            "comes first",
        ),
        (
            quote!(
                #[service]
                #[task]
                async fn f(&self) -> Result {}
            ),
            "one role",
        ),
        (
            quote!(
                #[service(idempotnt)]
                async fn f(&self) -> Result {}
            ),
            "takes idempotent",
        ),
        (
            quote!(
                #[service(timeout = 5)]
                async fn f(&self) -> Result {}
            ),
            "secs(5)",
        ),
        (
            quote!(
                #[service(name = "a", full_name = "b.a")]
                async fn f(&self) -> Result {}
            ),
            "a name or",
        ),
        (
            quote!(
                #[service]
                async fn f(&self, #[args] a: A, b: B) -> Result {}
            ),
            "only one",
        ),
        (
            quote!(
                #[service]
                async fn f(&self, #[cfg(x)] a: A) -> Result {}
            ),
            "may bear",
        ),
        (
            quote!(
                #[on]
                async fn f(&self) -> Result {}
            ),
            "takes a pattern",
        ),
        (
            quote!(
                #[on(exclude_own)]
                async fn f(&self) -> Result {}
            ),
            "takes a pattern",
        ),
        (
            quote!(
                #[on("a", oldest)]
                async fn f(&self) -> Result {}
            ),
            "takes patterns and",
        ),
        (
            quote!(
                #[on("a")]
                async fn f(&self, a: Event, b: u8) -> Result {}
            ),
            "one `Event`",
        ),
        (
            quote!(
                #[task(every = 5)]
                async fn f(&self) -> Result {}
            ),
            "no options",
        ),
        (
            quote!(
                #[on_load]
                async fn f(&self, x: u8) -> Result {}
            ),
            "nothing else",
        ),
    ] {
        let told = method_errors(method.clone());
        assert!(told.contains(remedy), "{method}: {told}");
    }
}

#[test]
fn all_faults_are_told_at_once() {
    let told = method_errors(quote! {
        #[service] async fn f(&mut self) -> Result { }
        #[task] async fn g(&self, x: u8) -> Result { }
    });
    assert!(
        told.contains("Mutex") && told.contains("nothing else"),
        "{told}"
    );
}
