//! Writes the builder calls for a model.

use proc_macro2::TokenStream;
use quote::{format_ident, quote, quote_spanned};
use syn::spanned::Spanned as _;
use syn::{Ident, LitStr, Type};

use crate::model::{self, Context, Form, Method, Model, OnOptions, Role, ServiceOptions};

pub(crate) fn expand(model: &Model) -> TokenStream {
    let item = &model.item;
    let plugin = &item.self_ty;
    let options = &model.options;
    let name = &options.name;
    let version = match &options.version {
        Some(version) => quote!(#version),
        None => quote!(::core::env!("CARGO_PKG_VERSION")),
    };
    let description = match &options.description {
        Some(description) => description.value(),
        None => model::summary(&item.attrs),
    };
    let requires = options
        .requires
        .as_ref()
        .map(|names| quote!(.requires::<&str>(#names)));
    let permissions = options
        .permissions
        .as_ref()
        .map(|texts| quote!(.permissions::<&str>(#texts)));
    let config = options.config.as_ref().map(|ty| quote!(.config::<#ty>()));
    let max_calls = options
        .max_calls_in_flight
        .as_ref()
        .map(|calls| quote!(.max_calls_in_flight(#calls)));
    let steps = model.methods.iter().map(step);
    quote! {
        #item

        #[automatically_derived]
        impl ::plugin_sdk::IntoPlugin for #plugin {
            fn into_plugin(self) -> ::plugin_sdk::Plugin {
                let this = ::std::sync::Arc::new(self);
                let builder = ::plugin_sdk::Plugin::builder(#name)
                    .version(#version)
                    .description(#description)
                    #requires
                    #permissions
                    #config
                    #max_calls;
                #(#steps)*
                let _ = &this;
                builder.build()
            }
        }

        #[automatically_derived]
        impl ::core::convert::From<#plugin>
            for ::std::sync::Arc<dyn ::plugin_sdk::__private::EmbeddedPlugin>
        {
            fn from(plugin: #plugin) -> Self {
                ::std::sync::Arc::new(::plugin_sdk::IntoPlugin::into_plugin(plugin))
            }
        }
    }
}

/// One rebinding of `builder` per method.
fn step(method: &Method) -> TokenStream {
    let call = match &method.role {
        Role::Service(options) => service(method, options),
        Role::On(options) => on(method, options),
        Role::Task => {
            let name = method.name.to_string();
            let body = invoke(method, &[]);
            quote!(builder.task(#name, move |ctx: ::plugin_sdk::Ctx| #body))
        }
        Role::Config => {
            let body = invoke(method, &[quote!(config)]);
            let ty = method.arguments.first().map(|argument| &argument.ty);
            quote!(builder.on_config(move |ctx: ::plugin_sdk::Ctx, config: #ty| #body))
        }
        Role::Hook(hook) => {
            let body = invoke(method, &[]);
            quote!(builder.#hook(move |ctx: ::plugin_sdk::Ctx| #body))
        }
    };
    quote! {
        let builder = {
            let this = ::std::sync::Arc::clone(&this);
            #call
        };
    }
}

/// The handler's future: calls the method with the context and these arguments.
fn invoke(method: &Method, arguments: &[TokenStream]) -> TokenStream {
    let name = &method.name;
    let context = match method.context {
        Context::None => None,
        Context::Reference => Some(quote!(&ctx,)),
        Context::Value => Some(quote!(::core::clone::Clone::clone(&ctx),)),
    };
    let call = quote_spanned!(name.span()=> this.#name(#context #(#arguments),*));
    let future = match method.is_async {
        true => quote!(async move { let _ = &ctx; #call.await }),
        false => quote! {
            async move {
                ::plugin_sdk::__private::blocking(move || { let _ = &ctx; #call }).await
            }
        },
    };
    quote! {{
        let this = ::std::sync::Arc::clone(&this);
        #future
    }}
}

fn service(method: &Method, options: &ServiceOptions) -> TokenStream {
    let begin = match (&options.name, &options.full_name) {
        (_, Some(name)) => quote!(::plugin_sdk::Service::with_full_name(#name)),
        (Some(name), _) => quote!(::plugin_sdk::Service::new(#name)),
        _ => {
            let name = method.name.to_string();
            let name = name.trim_start_matches("r#");
            quote!(::plugin_sdk::Service::new(#name))
        }
    };
    let summary = &method.summary;
    let idempotent = options.idempotent.then(|| quote!(.idempotent()));
    let read_only = options.read_only.then(|| quote!(.read_only()));
    let timeout = options.timeout.as_ref().map(|time| quote!(.timeout(#time)));
    let deprecated = options
        .deprecated
        .as_ref()
        .map(|text| quote!(.deprecated(#text)));
    let handler = handler(method);
    quote! {{
        let service = #begin.summary(#summary) #idempotent #read_only #timeout #deprecated;
        builder.service(#handler)
    }}
}

fn handler(method: &Method) -> TokenStream {
    let whole = |ty: &Type| {
        let body = invoke(method, &[quote!(arguments)]);
        quote_spanned! {ty.span()=>
            service.handle(move |ctx: ::plugin_sdk::Ctx, arguments: #ty| #body)
        }
    };
    match method.arguments.as_slice() {
        [] => {
            let body = invoke(method, &[]);
            quote!(service.handle(move |ctx: ::plugin_sdk::Ctx, (): ()| #body))
        }
        [only] if only.form == Form::All => whole(&only.ty),
        [only] if only.form == Form::Auto => {
            let ty = &only.ty;
            let whole = whole(ty);
            let named = named(method);
            quote! {
                if ::plugin_sdk::__private::is_struct::<#ty>() { #whole } else { #named }
            }
        }
        _ => named(method),
    }
}

/// A struct made for the arguments, so that all of serde and schemars applies to them.
fn named(method: &Method) -> TokenStream {
    let arguments = format_ident!("__Arguments_{}", method.name);
    let names: Vec<&Ident> = method
        .arguments
        .iter()
        .map(|argument| &argument.name)
        .collect();
    let fields = method.arguments.iter().map(|argument| {
        let (name, ty, attributes) = (&argument.name, &argument.ty, &argument.attributes);
        quote!(#(#attributes)* #name: #ty)
    });
    let values: Vec<_> = names.iter().map(|name| quote!(arguments.#name)).collect();
    let body = invoke(method, &values);
    quote! {{
        #[allow(non_camel_case_types)]
        #[derive(
            ::plugin_sdk::__private::serde::Deserialize,
            ::plugin_sdk::__private::schemars::JsonSchema,
        )]
        #[serde(crate = "::plugin_sdk::__private::serde", deny_unknown_fields)]
        #[schemars(crate = "::plugin_sdk::__private::schemars")]
        struct #arguments { #(#fields),* }
        service.handle(move |ctx: ::plugin_sdk::Ctx, arguments: #arguments| #body)
    }}
}

fn on(method: &Method, options: &OnOptions) -> TokenStream {
    let OnOptions {
        patterns,
        source,
        subject,
        exclude_own,
        from_oldest,
        on_gap,
    } = options;
    let (first, rest): (Option<&LitStr>, &[LitStr]) =
        (patterns.first(), patterns.get(1..).unwrap_or(&[]));
    let source = source.as_ref().map(|source| quote!(.source(#source)));
    let subject = subject.as_ref().map(|subject| quote!(.subject(#subject)));
    let exclude_own = exclude_own.then(|| quote!(.exclude_own()));
    let from_oldest = from_oldest.then(|| quote!(.from_oldest()));
    let on_gap = on_gap.as_ref().map(|name| {
        quote!(.on_gap({
            let this = ::std::sync::Arc::clone(&this);
            move |ctx: ::plugin_sdk::Ctx, gap: ::plugin_sdk::Gap| {
                let this = ::std::sync::Arc::clone(&this);
                async move { this.#name(&ctx, gap).await }
            }
        }))
    });
    let is_event = |ty: &Type| {
        matches!(ty, Type::Path(path)
            if path.path.segments.last().is_some_and(|segment| segment.ident == "Event"))
    };
    let body = match method.arguments.first() {
        None => invoke(method, &[]),
        Some(argument) if is_event(&argument.ty) => invoke(method, &[quote!(event)]),
        Some(argument) => {
            let ty = &argument.ty;
            let inner = invoke(method, &[quote!(data)]);
            quote! {{
                let this = ::std::sync::Arc::clone(&this);
                async move {
                    let data = event.parse::<#ty>()?;
                    #inner.await
                }
            }}
        }
    };
    quote! {
        builder.subscribe(
            ::plugin_sdk::Subscribe::to(#first) #(.and(#rest))*
                #source #subject #exclude_own #from_oldest #on_gap
                .handle(move |ctx: ::plugin_sdk::Ctx, event: ::plugin_sdk::Event| {
                    let _ = &event;
                    #body
                }),
        )
    }
}
