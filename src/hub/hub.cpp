// Which files of a model or a data set are wanted, and whether they are here.
#include "hub/hub.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <regex>
#include <set>

#include "core/error.h"
#include "core/files.h"
#include "hub/repository.h"

namespace picotron {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

bool is_true(std::string text) {
  std::ranges::transform(text, text.begin(),
                         [](char c) { return static_cast<char>(std::toupper(c)); });
  return text == "1" || text == "TRUE" || text == "YES" || text == "ON";
}

std::string without_end(std::string text, std::string_view end) {
  while (!end.empty() && text.ends_with(end)) text.resize(text.size() - end.size());
  return text;
}

std::string unescaped(const std::string& text) {
  std::string result;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '%' && i + 2 < text.size()) {
      result += static_cast<char>(std::stoi(text.substr(i + 1, 2), nullptr, 16));
      i += 2;
    } else {
      result += text[i];
    }
  }
  return result;
}

std::string brought(const Repository& repository, size_t files, const Progress& progress) {
  return fmt::format("Downloaded {} {}: {} {}, {:.1f} MB, {:.1f} s", repository.what(),
                     repository.id(), files, files == 1 ? "file" : "files",
                     static_cast<double>(progress.done()) / 1e6, progress.seconds());
}

// ----------------------------------------------------------------------------------------- models

const std::vector<std::string> kConfig = {"config.json", "generation_config.json"};
const std::vector<std::string> kTokenizer = {"tokenizer.json", "tokenizer.model",
                                             "tokenizer_config.json", "special_tokens_map.json"};
constexpr const char* kWeights = "model.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";

bool is_weights(const std::string& file) {
  return file.ends_with(".safetensors") && file.find('/') == std::string::npos;
}

// The weights' files that a snapshot should have; empty where it cannot be told.
std::vector<std::string> weights_in(const fs::path& snapshot) {
  std::error_code ignored;
  if (fs::exists(snapshot / kWeights, ignored)) return {kWeights};
  if (!fs::exists(snapshot / kIndex, ignored)) return {};
  const json index = json::parse(read_text_file(snapshot / kIndex), nullptr, false);
  std::set<std::string> files = {kIndex};
  if (index.is_object() && index.contains("weight_map"))
    for (const json& file : index["weight_map"])
      if (file.is_string()) files.insert(file.get<std::string>());
  return {files.begin(), files.end()};
}

// ------------------------------------------------------------------------------------- data sets

std::vector<std::string> files_under(const fs::path& folder) {
  std::vector<std::string> files;
  std::error_code error;
  for (fs::recursive_directory_iterator at(folder, error), end; !error && at != end;
       at.increment(error))
    if (at->is_regular_file())
      files.push_back(at->path().lexically_relative(folder).generic_string());
  std::ranges::sort(files);
  return files;
}

// Which files a split is, kept so that a second run need not ask.
fs::path note_of_split(const HubOptions& options, const std::string& id, const std::string& subset,
                       const std::string& split) {
  const std::string name =
      checksum_of(fmt::format("{}\n{}\n{}\n{}", options.endpoint, id, subset, split));
  return options.cache / ".picotron" / (name + ".json");
}

std::optional<std::vector<fs::path>> noted_files(const fs::path& note) {
  std::error_code ignored;
  if (!fs::exists(note, ignored)) return std::nullopt;
  const json noted = json::parse(read_text_file(note), nullptr, false);
  if (!noted.is_array()) return std::nullopt;
  std::vector<fs::path> files;
  for (const json& file : noted) {
    if (!file.is_string() || !fs::exists(file.get<std::string>(), ignored)) return std::nullopt;
    files.emplace_back(file.get<std::string>());
  }
  return files;
}

std::vector<fs::path> in_folder(const fs::path& folder, const std::vector<std::string>& files) {
  std::vector<fs::path> paths;
  for (const std::string& file : files) paths.push_back(folder / file);
  return paths;
}

// The hub's own Parquet files of a data set: {subset: {split: [url, …]}}.
RepositoryFiles converted_files(const Repository& repository, const std::string& endpoint,
                                const std::string& subset, const std::string& split) {
  const json all =
      repository.ask(fmt::format("{}/api/datasets/{}/parquet", endpoint, repository.id()));
  std::vector<std::string> there;
  if (all.is_object()) {
    for (const auto& [name, splits] : all.items())
      for (const auto& [part, urls] : splits.items()) there.push_back(name + " " + part);
  }
  std::string name = subset;
  if (name.empty() && all.is_object() && !all.empty())
    name = all.contains("default") ? "default" : all.items().begin().key();
  if (!subset.empty() || !all.is_object() || all.size() == 1 || all.contains("default")) {
    if (all.is_object() && all.contains(name) && all[name].contains(split)) {
      // …/datasets/ID/resolve/REVISION/PATH
      RepositoryFiles result;
      const std::regex form(".*/resolve/([^/]+)/(.+)");
      for (const json& url : all[name][split]) {
        std::smatch part;
        const std::string text = url.is_string() ? url.get<std::string>() : "";
        if (!std::regex_match(text, part, form))
          throw run_error("{} names a Parquet file in a form that is not known: {}", endpoint,
                          plain_sentence(text));
        result.revision = unescaped(part[1]);
        result.files.push_back(unescaped(part[2]));
      }
      return result;
    }
  }
  throw user_error(
      "data set {} has no Parquet files of split {}{}; dataset.subset_name and dataset.split may "
      "be "
      "{}",
      repository.id(), split, subset.empty() ? "" : " of subset " + subset,
      there.empty() ? "none" : fmt::format("{}", fmt::join(there, ", ")));
}

}  // namespace

HubOptions hub_options(const std::optional<std::string>& given_token) {
  HubOptions options;
  options.endpoint = without_end(variable("HF_ENDPOINT"), "/");
  if (options.endpoint.empty()) options.endpoint = "https://huggingface.co";
  options.offline = is_true(variable("HF_HUB_OFFLINE"));
  const fs::path home = variable("HOME"), xdg = variable("XDG_CACHE_HOME");
  fs::path hf_home = variable("HF_HOME");
  if (hf_home.empty()) hf_home = (xdg.empty() ? home / ".cache" : xdg) / "huggingface";
  options.cache = variable("HF_HUB_CACHE");
  if (options.cache.empty()) options.cache = hf_home / "hub";
  options.token = variable("HF_TOKEN");
  if (options.token.empty()) options.token = given_token.value_or("");
  fs::path token_file = variable("HF_TOKEN_PATH");
  if (token_file.empty()) token_file = hf_home / "token";
  std::error_code ignored;
  if (options.token.empty() && fs::is_regular_file(token_file, ignored))
    options.token = read_text_file(token_file);
  std::erase_if(options.token, [](char c) { return std::isspace(static_cast<unsigned char>(c)); });
  return options;
}

bool is_hub_id(const std::string& name) {
  static const std::regex form("[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*");
  std::error_code ignored;
  return std::regex_match(name, form) && !fs::exists(name, ignored);
}

fs::path fetch_model(const std::string& id, ModelFiles files, const HubOptions& options,
                     std::vector<std::string>& notes) {
  const Repository repository("models", id, options);
  std::vector<std::string> small = kTokenizer;
  if (files != ModelFiles::tokenizer) small.insert(small.end(), kConfig.begin(), kConfig.end());
  if (files == ModelFiles::config) small = kConfig;
  if (files == ModelFiles::tokenizer) small.emplace_back("config.json");

  std::error_code ignored;
  if (const auto snapshot = repository.snapshot("main")) {
    const auto is_here = [&](const std::string& file) {
      return fs::exists(*snapshot / file, ignored) || repository.is_known_absent(*snapshot, file);
    };
    const std::vector<std::string> weights = weights_in(*snapshot);
    const bool has_weights = !weights.empty() && std::ranges::all_of(weights, is_here);
    const bool needs_weights = files == ModelFiles::all;
    // Without the hub what is here must do: it may be all there is.
    const bool has_what_matters =
        files == ModelFiles::config      ? fs::exists(*snapshot / "config.json", ignored)
        : files == ModelFiles::tokenizer ? fs::exists(*snapshot / "tokenizer.json", ignored) ||
                                               fs::exists(*snapshot / "tokenizer.model", ignored)
                                         : has_weights;
    if ((std::ranges::all_of(small, is_here) && (has_weights || !needs_weights)) ||
        (options.offline && has_what_matters))
      return *snapshot;
  }
  const auto [commit, there] = repository.list("main");
  RepositoryFiles wanted{commit, {}};
  for (const std::string& file : there)
    if (std::ranges::count(small, file) > 0 ||
        (files == ModelFiles::all && (is_weights(file) || file == kIndex)))
      wanted.files.push_back(file);
  if (files == ModelFiles::all && std::ranges::none_of(wanted.files, is_weights))
    throw user_error("model {} has no .safetensors file on {}; give a model that has", id,
                     options.endpoint);
  if (files != ModelFiles::tokenizer && std::ranges::count(there, "config.json") == 0)
    throw user_error("model {} has no config.json on {}; is it a model?", id, options.endpoint);
  Progress progress;
  repository.bring(wanted, progress);
  const FileLock lock = repository.lock_notes();
  for (const std::string& file : small)
    if (std::ranges::count(there, file) == 0) repository.note_absent(commit, file);
  repository.note_commit("main", commit);
  if (progress.done() > 0) notes.push_back(brought(repository, wanted.files.size(), progress));
  return repository.folder_of(commit);
}

std::vector<std::string> parquet_files_of(const std::vector<std::string>& files,
                                          const std::string& subset, const std::string& split) {
  struct Parts {
    std::string file, stem;
    std::vector<std::string> folders;
    bool is_in(const std::string& folder) const { return std::ranges::count(folders, folder) > 0; }
  };
  std::vector<Parts> all;
  for (const std::string& file : files) {
    const fs::path path(file);
    if (path.extension() != ".parquet") continue;
    Parts parts{file, path.stem().string(), {}};
    for (const fs::path& part : path.parent_path()) parts.folders.push_back(part.string());
    all.push_back(parts);
  }
  const auto is_split = [&](const Parts& p) {
    const bool named =
        p.stem.starts_with(split) &&
        (p.stem.size() == split.size() ||
         std::string_view("-._").find(p.stem[split.size()]) != std::string_view::npos);
    return named || p.is_in(split);
  };
  const auto is_of_default = [&](const Parts& p) {
    return std::ranges::all_of(p.folders, [&](const std::string& folder) {
      return folder == "data" || folder == "default" || folder == split;
    });
  };
  std::vector<std::string> chosen;
  for (const Parts& parts : all) {
    const bool is_of_subset = subset.empty() ? is_of_default(parts) : parts.is_in(subset);
    if (is_of_subset && is_split(parts)) chosen.push_back(parts.file);
  }
  std::ranges::sort(chosen);
  return chosen;
}

std::vector<fs::path> fetch_dataset(const std::string& id, const std::string& subset,
                                    const std::string& split, const HubOptions& options,
                                    std::vector<std::string>& notes) {
  const Repository repository("datasets", id, options);
  const fs::path note = note_of_split(options, id, subset, split);
  if (const auto files = noted_files(note)) return *files;
  if (options.offline) {
    // What another program has brought.
    if (const auto snapshot = repository.snapshot("main")) {
      const auto files = parquet_files_of(files_under(*snapshot), subset, split);
      if (!files.empty()) return in_folder(*snapshot, files);
    }
  }
  RepositoryFiles wanted = repository.list("main");
  wanted.files = parquet_files_of(wanted.files, subset, split);
  const bool is_own = !wanted.files.empty();
  if (!is_own) wanted = converted_files(repository, options.endpoint, subset, split);
  Progress progress;
  const std::string commit = repository.bring(wanted, progress);
  const FileLock lock = repository.lock_notes();
  repository.note_commit(is_own ? "main" : wanted.revision, commit);
  const std::vector<fs::path> files = in_folder(repository.folder_of(commit), wanted.files);
  json list = json::array();
  for (const fs::path& file : files) list.push_back(file.string());
  fs::create_directories(note.parent_path());
  write_text_file(note, list.dump(1) + "\n");
  if (progress.done() > 0) notes.push_back(brought(repository, files.size(), progress));
  return files;
}

}  // namespace picotron
