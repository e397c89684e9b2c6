// Loads a SavedModel with tensorflow::LoadSavedModel, the call that TensorFlow Serving makes, and runs requests in it.
//
//   load_saved_model MODEL_DIR REQUEST [-- REQUEST]...
//
// A REQUEST is the name of a signature and its input. The signature itself tells which kind of input it takes:
//   serving_default FILE...      image files, all in one batch
//   serve_image FILE B H W       raw uint8 RGB pixels of B images
//
// Prints the load time, then one line of JSON per request: its outputs as flat lists, or the error that came back.
// Floats have 9 digits, which is exact for float32. A refused request does not end the program.

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

#include "tensorflow/cc/saved_model/loader.h"
#include "tensorflow/core/framework/tensor.h"
#include "tensorflow/core/public/session.h"

using Words = std::vector<std::string>;

// kSavedModelTagServe of TensorFlow, whose header is not in the wheel.
constexpr char kTagServe[] = "serve";

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(path + ": cannot be read");
  return std::string(std::istreambuf_iterator<char>(file), {});
}

// A string tensor [B] with the bytes of B files.
tensorflow::Tensor FileBytes(const Words& paths) {
  tensorflow::Tensor tensor(tensorflow::DT_STRING, {static_cast<int64_t>(paths.size())});
  auto* bytes = static_cast<tensorflow::tstring*>(tensor.data());
  for (size_t i = 0; i < paths.size(); ++i) bytes[i] = ReadFile(paths[i]);
  return tensor;
}

// A uint8 tensor [B, H, W, 3] from the words FILE B H W.
tensorflow::Tensor Pixels(const Words& words) {
  if (words.size() != 4) throw std::runtime_error("pixels want FILE B H W");
  tensorflow::Tensor tensor(tensorflow::DT_UINT8, {std::stoll(words[1]), std::stoll(words[2]), std::stoll(words[3]), 3});
  const std::string bytes = ReadFile(words[0]);
  if (bytes.size() != tensor.TotalBytes()) throw std::runtime_error(words[0] + ": is not of the given size");
  std::copy(bytes.begin(), bytes.end(), static_cast<char*>(tensor.data()));
  return tensor;
}

std::string JsonValue(const std::string& text) {
  std::string quoted = "\"";
  for (const char c : text) {
    char escaped[8];
    std::snprintf(escaped, sizeof escaped, "\\u%04x", static_cast<unsigned char>(c));
    const bool plain = c != '"' && c != '\\' && (c < 0 || c >= ' ');  // bytes of UTF-8 above 127 stay as they are
    quoted += plain ? std::string(1, c) : escaped;
  }
  return quoted + "\"";
}

std::string JsonValue(const tensorflow::tstring& text) { return JsonValue(std::string(text)); }

std::string JsonValue(int32_t number) { return std::to_string(number); }

std::string JsonValue(float number) {
  char digits[32];
  std::snprintf(digits, sizeof digits, "%.9g", number);
  return digits;
}

template <typename T>
std::string JsonList(const tensorflow::Tensor& tensor) {
  const auto* values = static_cast<const T*>(tensor.data());
  std::string list;
  for (int64_t i = 0; i < tensor.NumElements(); ++i) list += (i ? ", " : "") + JsonValue(values[i]);
  return "[" + list + "]";
}

std::string JsonList(const tensorflow::Tensor& tensor) {
  switch (tensor.dtype()) {
    case tensorflow::DT_FLOAT: return JsonList<float>(tensor);
    case tensorflow::DT_INT32: return JsonList<int32_t>(tensor);
    case tensorflow::DT_STRING: return JsonList<tensorflow::tstring>(tensor);
    default: throw std::runtime_error("an output has an unexpected type");
  }
}

// The outputs of a request, whose first word is the signature, as one JSON object.
std::string Answer(const tensorflow::SavedModelBundle& model, const Words& request) {
  const auto found = request.empty() ? model.GetSignatures().end() : model.GetSignatures().find(request[0]);
  if (found == model.GetSignatures().end()) throw std::runtime_error("a request starts with a signature's name");
  const auto& signature = found->second;
  const auto& input = signature.inputs().begin()->second;  // both signatures have one input
  const Words words(request.begin() + 1, request.end());
  const auto fed = input.dtype() == tensorflow::DT_STRING ? FileBytes(words) : Pixels(words);

  Words names, fetches;
  for (const auto& [name, info] : signature.outputs()) {
    names.push_back(name);
    fetches.push_back(info.name());
  }
  std::vector<tensorflow::Tensor> outputs;
  const auto status = model.GetSession()->Run({{input.name(), fed}}, fetches, {}, &outputs);
  if (!status.ok()) return "{\"error\": " + JsonValue(status.ToString()) + "}";

  std::string json;
  for (size_t i = 0; i < names.size(); ++i) json += (i ? ", " : "") + JsonValue(names[i]) + ": " + JsonList(outputs[i]);
  return "{" + json + "}";
}

// The words between the "--".
std::vector<Words> SplitRequests(const Words& words) {
  std::vector<Words> requests(1);
  for (const auto& word : words) {
    if (word == "--") {
      requests.emplace_back();
    } else {
      requests.back().push_back(word);
    }
  }
  return requests;
}

// Load once, then answer one request after the other.
void Serve(const std::string& folder, const std::vector<Words>& requests) {
  tensorflow::SavedModelBundle model;
  const auto start = std::chrono::steady_clock::now();
  const auto status = tensorflow::LoadSavedModel({}, {}, folder, {kTagServe}, &model);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  if (!status.ok()) throw std::runtime_error(status.ToString());
  std::cout << "{\"load_seconds\": " << seconds.count() << "}" << std::endl;
  for (const auto& request : requests) std::cout << Answer(model, request) << std::endl;
}

int main(int argc, char** argv) {
  if (argc < 3) {
    std::cerr << "usage: load_saved_model MODEL_DIR SIGNATURE INPUT... [-- SIGNATURE INPUT...]...\n";
    return 2;
  }
  try {
    Serve(argv[1], SplitRequests(Words(argv + 2, argv + argc)));
  } catch (const std::exception& error) {
    std::cerr << "load_saved_model: " << error.what() << "\n";
    return 1;
  }
  return 0;
}
