/** Shows the OpenAPI description. `SwaggerUIBundle` comes from the script before this one. */

SwaggerUIBundle({
  url: '/openapi.json',
  dom_id: '#swagger-ui',
  deepLinking: true,
  docExpansion: 'list',
  validatorUrl: null,
});
