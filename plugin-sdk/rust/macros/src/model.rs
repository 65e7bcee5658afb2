//! What the attribute and the `impl` say.

use proc_macro2::TokenStream;
use quote::ToTokens as _;
use syn::meta::ParseNestedMeta;
use syn::parse::Parser as _;
use syn::punctuated::Punctuated;
use syn::spanned::Spanned as _;
use syn::{
    Attribute, Error, Expr, ExprArray, FnArg, Ident, ImplItem, ImplItemFn, ItemImpl, Lit, LitStr,
    Meta, Pat, PatType, ReceiverKind, Result, ReturnType, Token, Type,
};

/// The attributes that a method may bear.
const ROLES: [&str; 8] = [
    "service",
    "on",
    "task",
    "on_load",
    "on_start",
    "on_stop",
    "on_unload",
    "on_config",
];

pub(crate) struct Model {
    pub(crate) options: Options,
    /// Without our attributes.
    pub(crate) item: ItemImpl,
    pub(crate) methods: Vec<Method>,
}

#[derive(Default)]
pub(crate) struct Options {
    pub(crate) name: Option<LitStr>,
    pub(crate) version: Option<Expr>,
    pub(crate) description: Option<LitStr>,
    pub(crate) requires: Option<ExprArray>,
    pub(crate) permissions: Option<ExprArray>,
    pub(crate) config: Option<Type>,
    pub(crate) max_calls_in_flight: Option<Expr>,
}

pub(crate) struct Method {
    pub(crate) name: Ident,
    pub(crate) role: Role,
    /// `async fn`; others run on worker threads.
    pub(crate) is_async: bool,
    pub(crate) context: Context,
    /// After the context.
    pub(crate) arguments: Vec<Argument>,
    pub(crate) summary: String,
}

pub(crate) enum Role {
    Service(ServiceOptions),
    On(OnOptions),
    Task,
    /// Name of the builder's method.
    Hook(Ident),
    /// `on_config`.
    Config,
}

/// How the handler takes its context.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Context {
    None,
    Reference,
    Value,
}

pub(crate) struct Argument {
    pub(crate) name: Ident,
    pub(crate) ty: Type,
    /// Documentation and `serde` attributes, for the field of the arguments' struct.
    pub(crate) attributes: Vec<Attribute>,
    pub(crate) form: Form,
}

/// Whether a lone argument is one of the arguments or all of them.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Form {
    /// All of them if it is a struct.
    Auto,
    /// `#[arg]`.
    One,
    /// `#[args]`.
    All,
}

#[derive(Default)]
pub(crate) struct ServiceOptions {
    pub(crate) name: Option<LitStr>,
    pub(crate) full_name: Option<LitStr>,
    pub(crate) idempotent: bool,
    pub(crate) read_only: bool,
    pub(crate) timeout: Option<Expr>,
    pub(crate) deprecated: Option<LitStr>,
}

#[derive(Default)]
pub(crate) struct OnOptions {
    pub(crate) patterns: Vec<LitStr>,
    pub(crate) source: Option<LitStr>,
    pub(crate) subject: Option<LitStr>,
    pub(crate) exclude_own: bool,
    pub(crate) from_oldest: bool,
    pub(crate) on_gap: Option<Ident>,
}

impl Model {
    pub(crate) fn parse(attribute: TokenStream, item: TokenStream) -> Result<Self> {
        let options = parse_options(attribute)?;
        let mut item: ItemImpl = syn::parse2(item).map_err(|error| {
            let text = "#[plugin] stands on an inherent impl: `impl Lamp { … }`";
            Error::new(error.span(), text)
        })?;
        if let Some((path, _)) = &item.trait_ {
            let text = "#[plugin] stands on an inherent impl, not on the impl of a trait";
            return Err(Error::new_spanned(path, text));
        }
        if !item.generics.params.is_empty() {
            let text = "a plugin is one concrete type; remove the generic parameters";
            return Err(Error::new_spanned(&item.generics, text));
        }
        let mut methods = Vec::new();
        let mut errors: Option<Error> = None;
        for member in &mut item.items {
            let ImplItem::Fn(function) = member else {
                continue;
            };
            match Method::parse(function) {
                Ok(Some(method)) => methods.push(method),
                Ok(None) => {}
                Err(error) => match &mut errors {
                    Some(errors) => errors.combine(error),
                    None => errors = Some(error),
                },
            }
        }
        match errors {
            Some(errors) => Err(errors),
            None => Ok(Self {
                options,
                item,
                methods,
            }),
        }
    }
}

/// The item as it is, less the attributes that only this macro understands.
pub(crate) fn without_attributes(item: TokenStream) -> TokenStream {
    let Ok(mut item) = syn::parse2::<ItemImpl>(item.clone()) else {
        return item;
    };
    for member in &mut item.items {
        if let ImplItem::Fn(function) = member {
            function
                .attrs
                .retain(|attribute| role_of(attribute).is_none());
            for input in &mut function.sig.inputs {
                if let FnArg::Typed(argument) = input {
                    argument.attrs.clear();
                }
            }
        }
    }
    item.into_token_stream()
}

fn parse_options(attribute: TokenStream) -> Result<Options> {
    let mut options = Options::default();
    let parser = syn::meta::parser(|meta| {
        match name_of(&meta).as_str() {
            "name" => options.name = Some(plugin_name(meta.value()?.parse()?)?),
            "version" => options.version = Some(meta.value()?.parse()?),
            "description" => options.description = Some(meta.value()?.parse()?),
            "requires" => options.requires = Some(meta.value()?.parse()?),
            "permissions" => options.permissions = Some(meta.value()?.parse()?),
            "config" => options.config = Some(meta.value()?.parse()?),
            "max_calls_in_flight" => options.max_calls_in_flight = Some(meta.value()?.parse()?),
            _ => {
                return Err(meta.error(
                    "#[plugin] takes name, version, description, requires, permissions, config, \
                     max_calls_in_flight",
                ));
            }
        }
        Ok(())
    });
    parser.parse2(attribute)?;
    if options.name.is_none() {
        let text = "a plugin needs a name: #[plugin(name = \"lamp\")]";
        return Err(Error::new(proc_macro2::Span::call_site(), text));
    }
    Ok(options)
}

fn plugin_name(name: LitStr) -> Result<LitStr> {
    let text = name.value();
    let mut characters = text.chars();
    let good = characters
        .next()
        .is_some_and(|first| first.is_ascii_lowercase())
        && characters.all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-".contains(c))
        && text.len() <= 48
        && !["core", "operator"].contains(&text.as_str());
    match good {
        true => Ok(name),
        false => Err(Error::new(
            name.span(),
            "a plugin's name is [a-z][a-z0-9_-]{0,47}, and not core or operator",
        )),
    }
}

fn name_of(meta: &ParseNestedMeta<'_>) -> String {
    let ident = meta.path.get_ident();
    ident.map(ToString::to_string).unwrap_or_default()
}

fn role_of(attribute: &Attribute) -> Option<&Ident> {
    let ident = attribute.path().get_ident()?;
    ROLES.iter().any(|role| ident == role).then_some(ident)
}

impl Method {
    /// Takes our attributes off the function; `None` if it bears none.
    fn parse(function: &mut ImplItemFn) -> Result<Option<Self>> {
        let (ours, others): (Vec<_>, Vec<_>) = function
            .attrs
            .drain(..)
            .partition(|attribute| role_of(attribute).is_some());
        function.attrs = others;
        let mut ours = ours.into_iter();
        let Some(attribute) = ours.next() else {
            return Ok(None);
        };
        if let Some(second) = ours.next() {
            let text = "a method has one role; write a second method that calls the first";
            return Err(Error::new_spanned(second, text));
        }
        let role = Role::parse(&attribute)?;
        let signature = &mut function.sig;
        if !signature.generics.params.is_empty() {
            let text = "a handler has no generic parameters: its types stand in its description";
            return Err(Error::new_spanned(&signature.generics, text));
        }
        match signature.receiver().map(|receiver| &receiver.kind) {
            Some(ReceiverKind::Reference(_, _, None)) => {}
            _ => {
                let text = "a handler takes `&self`: all handlers share the plugin and run at \
                            the same time; put what changes into a Mutex";
                let at = signature
                    .inputs
                    .first()
                    .map_or(signature.ident.span(), |i| i.span());
                return Err(Error::new(at, text));
            }
        }
        if matches!(signature.output, ReturnType::Default) {
            let text = "a handler returns `Result` or `Result<T>`";
            return Err(Error::new(signature.ident.span(), text));
        }
        let (context, arguments) = parse_inputs(&mut signature.inputs)?;
        let method = Self {
            name: signature.ident.clone(),
            is_async: signature.asyncness.is_some(),
            summary: summary(&function.attrs),
            role,
            context,
            arguments,
        };
        method.check()?;
        Ok(Some(method))
    }

    fn check(&self) -> Result<()> {
        let at = |index: usize| self.arguments.get(index).map(|argument| &argument.ty);
        match &self.role {
            Role::Service(_) => {
                for argument in &self.arguments {
                    if let Type::Reference(reference) = &argument.ty {
                        let text = "arguments arrive by value: take `String`, `Vec<T>` or a \
                                    struct (`&Ctx` alone is a reference, and comes first)";
                        return Err(Error::new_spanned(reference, text));
                    }
                    if argument.form == Form::All && self.arguments.len() > 1 {
                        let text = "#[args] takes all arguments, so it must be the only one";
                        return Err(Error::new_spanned(&argument.ty, text));
                    }
                }
            }
            Role::On(_) => {
                if let Some(second) = at(1) {
                    let text = "an event's handler takes `&Ctx` and one `Event` (or the type of \
                                its data), each if it wants";
                    return Err(Error::new_spanned(second, text));
                }
            }
            Role::Config => {
                if self.arguments.len() != 1 {
                    let text = "on_config takes `&Ctx`, if it wants, and the new configuration";
                    return Err(Error::new(self.name.span(), text));
                }
            }
            Role::Task | Role::Hook(_) => {
                if let Some(first) = at(0) {
                    let text = "a task or hook takes `&Ctx` and nothing else";
                    return Err(Error::new_spanned(first, text));
                }
            }
        }
        Ok(())
    }
}

fn parse_inputs(inputs: &mut Punctuated<FnArg, Token![,]>) -> Result<(Context, Vec<Argument>)> {
    let mut context = Context::None;
    let mut arguments = Vec::new();
    for input in inputs {
        let FnArg::Typed(typed) = input else { continue };
        match context_of(&typed.ty) {
            Context::None => arguments.push(Argument::parse(typed)?),
            found if context == Context::None && arguments.is_empty() => context = found,
            _ => {
                let text = "the context comes first, once";
                return Err(Error::new_spanned(typed, text));
            }
        }
    }
    Ok((context, arguments))
}

fn context_of(ty: &Type) -> Context {
    let is_ctx = |ty: &Type| {
        matches!(ty, Type::Path(path)
            if path.path.segments.last().is_some_and(|segment| segment.ident == "Ctx"))
    };
    match ty {
        Type::Reference(reference) if is_ctx(&reference.elem) => Context::Reference,
        ty if is_ctx(ty) => Context::Value,
        _ => Context::None,
    }
}

impl Argument {
    fn parse(typed: &mut PatType) -> Result<Self> {
        let mut form = Form::Auto;
        let mut attributes = Vec::new();
        for attribute in typed.attrs.drain(..) {
            match attribute
                .path()
                .get_ident()
                .map(ToString::to_string)
                .as_deref()
            {
                Some("arg") => form = Form::One,
                Some("args") => form = Form::All,
                Some("doc" | "serde" | "schemars") => attributes.push(attribute),
                _ => {
                    let text = "an argument may bear documentation, #[serde(…)], #[arg], #[args]";
                    return Err(Error::new_spanned(attribute, text));
                }
            }
        }
        let name = match &*typed.pat {
            Pat::Ident(pattern) => pattern.ident.clone(),
            // Taken apart on the spot: it must be all arguments, for it has no name.
            pattern => {
                form = Form::All;
                Ident::new("arguments", pattern.span())
            }
        };
        Ok(Self {
            name,
            ty: (*typed.ty).clone(),
            attributes,
            form,
        })
    }
}

impl Role {
    fn parse(attribute: &Attribute) -> Result<Self> {
        let role = role_of(attribute).expect("only our attributes come here");
        match role.to_string().as_str() {
            "service" => parse_service(attribute).map(Self::Service),
            "on" => parse_on(attribute).map(Self::On),
            name => {
                attribute.meta.require_path_only().map_err(|error| {
                    Error::new(error.span(), format!("#[{name}] takes no options"))
                })?;
                Ok(match name {
                    "task" => Self::Task,
                    "on_config" => Self::Config,
                    _ => Self::Hook(role.clone()),
                })
            }
        }
    }
}

fn parse_service(attribute: &Attribute) -> Result<ServiceOptions> {
    let mut options = ServiceOptions::default();
    if matches!(attribute.meta, Meta::Path(_)) {
        return Ok(options);
    }
    attribute.parse_nested_meta(|meta| {
        match name_of(&meta).as_str() {
            "name" => options.name = Some(meta.value()?.parse()?),
            "full_name" => options.full_name = Some(meta.value()?.parse()?),
            "idempotent" => options.idempotent = true,
            "read_only" => options.read_only = true,
            "timeout" => options.timeout = Some(timeout(meta.value()?.parse()?)?),
            "deprecated" => options.deprecated = Some(meta.value()?.parse()?),
            _ => {
                return Err(meta.error(
                    "#[service] takes idempotent, read_only, name, full_name, timeout, deprecated",
                ));
            }
        }
        Ok(())
    })?;
    if let (Some(_), Some(second)) = (&options.name, &options.full_name) {
        let text = "a service has a name or a full_name";
        return Err(Error::new(second.span(), text));
    }
    Ok(options)
}

fn timeout(value: Expr) -> Result<Expr> {
    if let Expr::Lit(literal) = &value
        && !matches!(literal.lit, Lit::Verbatim(_))
    {
        let text = "a timeout is a Duration: `timeout = secs(5)`";
        return Err(Error::new_spanned(literal, text));
    }
    Ok(value)
}

fn parse_on(attribute: &Attribute) -> Result<OnOptions> {
    let text = "#[on] takes a pattern: #[on(\"presence.*\")]";
    let Meta::List(list) = &attribute.meta else {
        return Err(Error::new_spanned(attribute, text));
    };
    let mut options = OnOptions::default();
    let parse = |input: syn::parse::ParseStream<'_>| {
        // The patterns first, then the options.
        while input.peek(LitStr) {
            options.patterns.push(input.parse()?);
            if !input.is_empty() {
                input.parse::<Token![,]>()?;
            }
        }
        let parser = syn::meta::parser(|meta| {
            match name_of(&meta).as_str() {
                "source" => options.source = Some(meta.value()?.parse()?),
                "subject" => options.subject = Some(meta.value()?.parse()?),
                "exclude_own" => options.exclude_own = true,
                "from_oldest" => options.from_oldest = true,
                "on_gap" => options.on_gap = Some(meta.value()?.parse()?),
                _ => {
                    return Err(meta.error(
                        "#[on] takes patterns and source, subject, exclude_own, from_oldest, \
                         on_gap",
                    ));
                }
            }
            Ok(())
        });
        parser.parse2(input.parse()?)
    };
    parse.parse2(list.tokens.clone())?;
    match options.patterns.is_empty() {
        true => Err(Error::new_spanned(attribute, text)),
        false => Ok(options),
    }
}

/// The first paragraph of the documentation.
pub(crate) fn summary(attributes: &[Attribute]) -> String {
    let lines = attributes.iter().filter_map(|attribute| {
        let Meta::NameValue(pair) = &attribute.meta else {
            return None;
        };
        match &pair.value {
            Expr::Lit(literal) if pair.path.is_ident("doc") => match &literal.lit {
                Lit::Str(text) => Some(text.value().trim().to_owned()),
                _ => None,
            },
            _ => None,
        }
    });
    let paragraph: Vec<_> = lines
        .skip_while(String::is_empty)
        .take_while(|line| !line.is_empty())
        .collect();
    paragraph.join(" ")
}
