// Stand-ins for what API Management gives to a policy's expressions, and a gateway that evaluates them: a question a line,
// an answer a line, both JSON. The types have the members that its documentation names and the policies use, no more.

using System;
using System.Collections.Generic;
using System.Linq;
using Newtonsoft.Json;
using Newtonsoft.Json.Linq;

public interface IMessageBody { T As<T>(bool preserveContent = false); }

public interface IRequest
{
    IMessageBody Body { get; }
    IReadOnlyDictionary<string, string[]> Headers { get; }
    IReadOnlyDictionary<string, string> MatchedParameters { get; }
}

public interface IResponse
{
    IMessageBody Body { get; }
    int StatusCode { get; }
}

public interface IContext
{
    IRequest Request { get; }
    IReadOnlyDictionary<string, object> Variables { get; }
}

public static class Lookups
{
    public static string GetValueOrDefault(this IReadOnlyDictionary<string, string> values, string name, string otherwise)
    {
        return values.ContainsKey(name) ? values[name] : otherwise;
    }

    public static string GetValueOrDefault(this IReadOnlyDictionary<string, string[]> values, string name, string otherwise)
    {
        return values.ContainsKey(name) ? string.Join(",", values[name]) : otherwise;
    }
}

class Body : IMessageBody
{
    readonly string text;
    bool isGone;

    public Body(string text) { this.text = text; }

    public T As<T>(bool preserveContent)
    {
        if (isGone) { throw new InvalidOperationException("the body was read before, and not preserved"); }
        isGone = !preserveContent;
        return (T)(typeof(T) == typeof(JObject) ? (object)JObject.Parse(text) : text);
    }
}

class Response : IResponse
{
    public IMessageBody Body { get; set; }
    public int StatusCode { get; set; }
}

class Context : IContext, IRequest
{
    public Context(JObject said)
    {
        Headers = said["headers"].ToObject<Dictionary<string, string>>().ToDictionary(one => one.Key, one => new[] { one.Value });
        MatchedParameters = said["parameters"].ToObject<Dictionary<string, string>>();
        Body = said["body"].Type == JTokenType.Null ? null : new Body((string)said["body"]);
        Variables = ((JObject)said["variables"]).Properties().ToDictionary(one => one.Name, one => Value(one.Value));
    }

    public IRequest Request { get { return this; } }
    public IMessageBody Body { get; private set; }
    public IReadOnlyDictionary<string, string[]> Headers { get; private set; }
    public IReadOnlyDictionary<string, string> MatchedParameters { get; private set; }
    public IReadOnlyDictionary<string, object> Variables { get; private set; }

    static object Value(JToken said)
    {
        var answer = said as JObject;
        return answer == null ? ((JValue)said).Value : new Response { StatusCode = (int)answer["status"], Body = new Body((string)answer["body"]) };
    }
}

static class Gateway
{
    static void Main()
    {
        for (string line; (line = Console.ReadLine()) != null;)
        {
            var said = JObject.Parse(line);
            var answer = new JObject();
            try { answer["value"] = new JValue(Expressions.All[(int)said["expression"]](new Context(said))); }
            catch (Exception fault) { answer["fault"] = fault.ToString(); }
            Console.WriteLine(answer.ToString(Formatting.None));
        }
    }
}
