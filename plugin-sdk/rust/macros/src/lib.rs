//! The `#[plugin]` attribute of `plugin-sdk`: sugar over `Plugin::builder`, documented there.
//!
//! Three steps, each a module: `model` reads the `impl` and its attributes, and refuses what cannot
//! work with a message at the place; `expand` writes the builder calls. What the generated code needs
//! it takes from `::plugin_sdk`, so that a plugin needs no other dependency for it.

mod expand;
mod model;

use proc_macro::TokenStream;

/// Makes a plugin of an inherent `impl`. See `plugin_sdk::plugin`.
#[proc_macro_attribute]
pub fn plugin(attribute: TokenStream, item: TokenStream) -> TokenStream {
    plugin_or_error(attribute.into(), item.into()).into()
}

fn plugin_or_error(
    attribute: proc_macro2::TokenStream,
    item: proc_macro2::TokenStream,
) -> proc_macro2::TokenStream {
    match model::Model::parse(attribute, item.clone()) {
        Ok(model) => expand::expand(&model),
        Err(error) => {
            // The item stays, without our attributes, so that the compiler shows its other errors too.
            let item = model::without_attributes(item);
            let error = error.into_compile_error();
            quote::quote!(#item #error)
        }
    }
}

#[cfg(test)]
mod tests;
